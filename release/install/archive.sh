# Runs on the machine of machine.sh: the agent from the archive, by hand, as docs/install.md says. No user is created.
. ./checks.sh

tar -xzf ./*.tar.gz
cd webhook-agent_*/
install -m 0755 webhook-agent /usr/local/bin/
install -D -m 0644 config.example.toml /etc/quintago/webhook-agent.toml
install -m 0644 webhook-agent.service /etc/systemd/system/
install -D -m 0644 -t /usr/local/share/man/man1 man/*
systemctl daemon-reload

is "$(webhook-agent --version | cut -d ' ' -f 2)" "$(cat /in/version)"
man webhook-agent | grep "outbox as signed"
refuses getent passwd webhook-agent
check_service /usr/local/bin/webhook-agent
