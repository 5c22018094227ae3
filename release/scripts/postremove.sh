#!/bin/sh
# Removes the user when the package is purged. dpkg removes the configuration file itself. Keys and
# other files that people have put into /etc/quintago stay: without the key, nobody can open the
# secrets in the database. rpm has no purge, and its user stays, as is the custom there.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

if [ "$1" = purge ]; then
	if getent passwd webhook-agent >/dev/null; then
		userdel webhook-agent || true
	fi
	if getent group webhook-agent >/dev/null; then
		groupdel webhook-agent || true
	fi
fi
