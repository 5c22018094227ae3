#!/bin/sh
# Starts nothing: the agent cannot run before it is configured. After an upgrade, an agent that runs
# is started anew. dpkg calls it with "configure" and the former version, rpm with 1 (first
# installation) or 2 (upgrade).
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemctl try-restart webhook-agent.service || true
fi

case "$1:$2" in
configure: | 1:)
	echo "webhook-agent is installed and does not run yet. /usr/share/doc/webhook-agent/install.md says what comes next."
	;;
esac
