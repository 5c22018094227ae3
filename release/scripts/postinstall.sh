#!/bin/sh
# Starts nothing: the agent cannot run before it is configured. After an upgrade, an agent that runs
# goes on as it is: a restart before the migration would stop delivery until then. dpkg calls it with
# "configure" and the former version, rpm with 1 (first installation) or 2 (upgrade).
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

case "$1:$2" in
configure: | 1:)
	echo "webhook-agent is installed and does not run yet. /usr/share/doc/webhook-agent/install.md says what comes next."
	;;
*)
	echo "webhook-agent is upgraded. A running agent is still the former version: run webhook-agent migrate, and then systemctl restart webhook-agent."
	;;
esac
