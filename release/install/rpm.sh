# Runs on the machine of machine.sh: the life of the package for rpm. Its dependencies are left out, since rpm knows nothing of the
# programs of a Debian system.
. ./checks.sh

rpm --query --list --package ./*.rpm
rpm --install --nodeps ./*.rpm
rpm --verify --nodeps webhook-agent # sizes, modes and owners
check_installed /usr/share/zsh/site-functions/_webhook-agent
check_service /usr/bin/webhook-agent "$(id -u webhook-agent)"

echo "# changed" >>/etc/quintago/webhook-agent.toml
systemctl enable webhook-agent
before=$(systemctl show --property MainPID --value webhook-agent)
rpm --upgrade --force --nodeps ./*.rpm
is "$(tail -n 1 /etc/quintago/webhook-agent.toml)" "# changed"
is "$(systemctl is-enabled webhook-agent)" enabled
is "$(systemctl show --property MainPID --value webhook-agent)" "$before" # still the former version

rpm --erase webhook-agent
refuses pgrep -x webhook-agent
gone /usr/bin/webhook-agent /usr/lib/systemd/system/webhook-agent.service /etc/systemd/system/multi-user.target.wants/webhook-agent.service
is "$(tail -n 1 /etc/quintago/webhook-agent.toml.rpmsave)" "# changed"
