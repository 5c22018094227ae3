package testenv

import (
	"context"
	"fmt"
	"sync"
)

// pattern is a stopped cluster whose data folder the other clusters of a test binary are copies of: a copy takes a tenth of
// what initdb and the template take. The copies have its roles, its password, its template database, and its system
// identifier.
var pattern struct {
	make    sync.Once
	cluster *Cluster
	err     error
}

// copyPattern makes the data folder a copy of the pattern's, and starts the server. The first one makes the pattern.
func (c *Cluster) copyPattern(ctx context.Context) error {
	pattern.make.Do(func() { pattern.cluster, pattern.err = makePattern(context.WithoutCancel(ctx)) })
	if pattern.err != nil {
		return pattern.err
	}
	c.binaries, c.password = pattern.cluster.binaries, pattern.cluster.password
	if err := pattern.cluster.copyData(c.dataDir(), nil); err != nil {
		return fmt.Errorf("copy the data folder: %w", err)
	}
	c.template.Do(func() {}) // it came with the copy
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
