#!/bin/sh
# Creates the user and the group that the agent runs as. It runs before the files are unpacked, since
# the configuration file belongs to this group. An upgrade finds both there.
set -e

if ! getent group webhook-agent >/dev/null; then
	groupadd --system webhook-agent
fi
if ! getent passwd webhook-agent >/dev/null; then
	nologin=/usr/sbin/nologin
	[ -x "$nologin" ] || nologin=/sbin/nologin
	useradd --system --gid webhook-agent --no-create-home --home-dir /nonexistent \
		--comment "QuintaGo webhook agent" --shell "$nologin" webhook-agent
fi
