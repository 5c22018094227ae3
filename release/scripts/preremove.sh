#!/bin/sh
# Stops the agent before its binary goes, and not when an upgrade removes the former version. dpkg
# calls it with "remove" or "upgrade", rpm with 0 (removal) or 1 (upgrade).
set -e

case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now webhook-agent.service || true
	fi
	;;
esac
