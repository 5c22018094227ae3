# Runs on the machine of machine.sh: the life of the package for dpkg, from the installation to the purge.
. ./checks.sh

# Without triggers, man-db does not read all manuals of this system each time. Some images of containers leave out manuals.
quick_dpkg() { dpkg --no-triggers --path-include='/usr/share/*' "$@"; }

quick_dpkg --install ./*.deb
is "$(dpkg-query --show --showformat '${Status}' webhook-agent)" "install ok installed"
check_installed /usr/share/zsh/vendor-completions/_webhook-agent
check_service /usr/bin/webhook-agent "$(id -u webhook-agent)"

# An upgrade keeps what people have changed, and lets the agent that runs go on until the migration.
echo "# changed" >>/etc/quintago/webhook-agent.toml
systemctl enable webhook-agent
before=$(systemctl show --property MainPID --value webhook-agent)
quick_dpkg --force-confold --install ./*.deb
is "$(tail -n 1 /etc/quintago/webhook-agent.toml)" "# changed"
is "$(stat --format '%a %U %G' /etc/quintago/webhook-agent.toml)" "640 root webhook-agent"
is "$(systemctl is-enabled webhook-agent)" enabled
is "$(systemctl show --property MainPID --value webhook-agent)" "$before" # still the former version

quick_dpkg --remove webhook-agent
refuses pgrep -x webhook-agent
gone /usr/bin/webhook-agent /usr/lib/systemd/system/webhook-agent.service /etc/systemd/system/multi-user.target.wants/webhook-agent.service
is "$(tail -n 1 /etc/quintago/webhook-agent.toml)" "# changed"
getent passwd webhook-agent

quick_dpkg --purge webhook-agent
gone /etc/quintago/webhook-agent.toml
refuses getent passwd webhook-agent
refuses getent group webhook-agent
is "$(cat /etc/quintago/key)" "$(cat /in/key)" # what people have made stays
