package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"
)

// standbySlot is the physical replication slot that the standby of a cluster streams from.
const standbySlot = "standby"

// slotSyncMajor is the first version whose standbys can copy logical replication slots from their
// primary.
const slotSyncMajor = 17

// Save keeps a copy of the data folder, as a file-level backup would. It stops the server in good
// order for that, and starts it again. It replaces an earlier copy.
func (c *Cluster) Save(ctx context.Context) error {
	if err := c.Stop(ctx, Fast); err != nil {
		return err
	}
	if err := os.RemoveAll(c.savedDir()); err != nil {
		return fmt.Errorf("save the data folder: %w", err)
	}
	if err := c.copyData(c.savedDir(), nil); err != nil {
		return fmt.Errorf("save the data folder: %w", err)
	}
	return c.Resume(ctx)
}

// Restore replaces the data folder by the copy of the last Save, and starts the server. The copy is
// used up.
func (c *Cluster) Restore(ctx context.Context) error {
	if err := c.Stop(ctx, Immediate); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dataDir()); err != nil {
		return fmt.Errorf("restore the data folder: %w", err)
	}
	if err := os.Rename(c.savedDir(), c.dataDir()); err != nil {
		return fmt.Errorf("restore the data folder: %w", err)
	}
	return c.Resume(ctx)
}

func (c *Cluster) savedDir() string { return c.folder.join("saved") }

// NewStandby makes a standby of the cluster, and closes it at the end of the test. It stops the
// cluster to copy the data, and starts it again. The standby follows by streaming replication. It
// has no logical replication slots at first, because a base backup holds none. From PostgreSQL 17
// on it copies those that allow it (failover) while it follows.
func (c *Cluster) NewStandby(t testing.TB) *Cluster {
	t.Helper()
	standby, err := c.startStandby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	return standby
}

func (c *Cluster) startStandby(ctx context.Context) (_ *Cluster, err error) {
	if err := c.maintainSQL(ctx, "select pg_create_physical_replication_slot('"+standbySlot+"', true)"); err != nil {
		return nil, fmt.Errorf("make the slot of the standby: %w", err)
	}
	f, err := makeFolder(c.opts.parentFolder(), clusterFolder, c.as)
	if err != nil {
		return nil, err
	}
	standby := &Cluster{binaries: c.binaries, opts: c.opts, as: c.as, folder: f, password: c.password}
	defer func() {
		if err != nil {
			err = errors.Join(err, standby.Close())
		}
	}()
	if standby.port, err = FreePort(); err != nil {
		return nil, err
	}
	if err := c.Stop(ctx, Fast); err != nil {
		return nil, err
	}
	if err := c.copyData(standby.dataDir(), func(path string) bool { return filepath.Dir(path) == "pg_replslot" }); err != nil {
		return nil, fmt.Errorf("copy the primary: %w", err)
	}
	if err := c.Resume(ctx); err != nil {
		return nil, err
	}
	standby.opts.Settings = standby.followSettings(c)
	if err := standby.configure(); err != nil {
		return nil, err
	}
	if err := standby.writeFile("standby.signal", nil); err != nil {
		return nil, err
	}
	err = standby.Resume(ctx)
	return standby, err
}

// followSettings returns the settings of the standby c: those of the primary, and those that make
// it follow.
func (c *Cluster) followSettings(primary *Cluster) map[string]string {
	settings := map[string]string{
		"primary_conninfo": fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=%s application_name=%s",
			primary.port, superuser, primary.password, maintenanceDatabase, standbySlot),
		"primary_slot_name":           standbySlot,
		"hot_standby_feedback":        "on",
		"wal_retrieve_retry_interval": "100ms",
	}
	if c.binaries.Major >= slotSyncMajor {
		settings["sync_replication_slots"] = "on"
	}
	for name, value := range primary.opts.Settings {
		settings[name] = value
	}
	return settings
}

// CaughtUp returns an error if the standby c has not yet replayed what the primary had written when
// CaughtUp was called.
func (c *Cluster) CaughtUp(ctx context.Context, primary *Cluster) error {
	written, err := primary.queryText(ctx, "select pg_current_wal_insert_lsn()::text")
	if err != nil {
		return err
	}
	behind, err := c.queryText(ctx, "select case when pg_last_wal_replay_lsn() >= $1::pg_lsn then '' else pg_last_wal_replay_lsn()::text end", written)
	if err != nil {
		return err
	}
	if behind != "" {
		return fmt.Errorf("the standby is at %s, the primary at %s", behind, written)
	}
	return nil
}

func (c *Cluster) queryText(ctx context.Context, sql string, args ...any) (text string, err error) {
	err = c.maintain(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(&text) })
	return text, err
}

// FailOver crashes the cluster and promotes the standby, which takes its place: the cluster then
// has the standby's data at its own old address. The Cluster standby is stopped then. What the
// standby had not received is lost.
func (c *Cluster) FailOver(ctx context.Context, standby *Cluster) error {
	if err := c.Crash(); err != nil {
		return err
	}
	if err := standby.Stop(ctx, Fast); err != nil {
		return err
	}
	c.folder, standby.folder = standby.folder, c.folder
	c.opts, standby.opts = standby.opts, c.opts
	if err := c.configure(); err != nil {
		return err
	}
	if err := c.Resume(ctx); err != nil {
		return err
	}
	if err := c.maintainSQL(ctx, "do $$ begin if not pg_promote() then raise 'not within its time'; end if; end $$"); err != nil {
		return fmt.Errorf("promote the standby: %w", err)
	}
	return nil
}

// configure writes postgresql.conf.
func (c *Cluster) configure() error { return c.writeFile("postgresql.conf", c.configuration()) }

// writeFile writes a file into the data folder and gives it to the user of the server.
func (c *Cluster) writeFile(name string, content []byte) error {
	path := filepath.Join(c.dataDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("configure the server: %w", err)
	}
	return c.as.own(path)
}

// copyData copies the data folder of the stopped server to another folder, which must not exist. It
// leaves out the paths for which leaveOut returns true; these are relative to the data folder.
func (c *Cluster) copyData(to string, leaveOut func(path string) bool) error {
	return filepath.WalkDir(c.dataDir(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(c.dataDir(), path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, within)
		switch {
		case leaveOut != nil && leaveOut(within):
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case entry.IsDir():
			err = os.Mkdir(target, 0o700)
		case entry.Type().IsRegular():
			err = copyFile(path, target)
		default: // such as the link of a tablespace: two servers must not write to the same place
			err = fmt.Errorf("%s is neither a file nor a folder", path)
		}
		if err != nil {
			return err
		}
		return c.as.own(target)
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read, so an error does not matter
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
