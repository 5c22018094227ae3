package testenv

import (
	"context"
	"fmt"
	"sync"
)

// pattern is a stopped cluster. The data folders of the other clusters of a test binary are copies
// of its data folder, because copying takes a tenth of the time of initdb and the template. A copy
// has the same roles, password, template database and system identifier.
var pattern struct {
	make    sync.Once
	cluster *Cluster
	err     error
}

// copyPattern makes the data folder by copying that of the pattern, and starts the server. The
// first call also makes the pattern.
func (c *Cluster) copyPattern(ctx context.Context) error {
	pattern.make.Do(func() { pattern.cluster, pattern.err = makePattern(context.WithoutCancel(ctx)) })
	if pattern.err != nil {
		return pattern.err
	}
	c.binaries, c.password = pattern.cluster.binaries, pattern.cluster.password
	if err := pattern.cluster.copyData(c.dataDir(), nil); err != nil {
		return fmt.Errorf("copy the data folder: %w", err)
	}
	c.template.Do(func() {}) // the copy has the template already
	if err := c.configure(); err != nil {
		return err
	}
	return c.Resume(ctx)
}

func makePattern(ctx context.Context) (*Cluster, error) {
	c, err := Start(ctx, Options{Template: shared.opts.Template, inMemory: true})
	if err != nil {
		return nil, err
	}
	if err = c.makeTemplate(ctx); err == nil {
		err = c.Stop(ctx, Fast)
	}
	return c, err
}
