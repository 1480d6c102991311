package main

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// observe runs what watches the worker beside ingest (reports, alerts, figures for the other replicas), until ctx ends. Nothing that happens to it ends the worker.
func observe(ctx context.Context, parts ...func(context.Context)) error {
	var group errgroup.Group
	for _, part := range parts {
		group.Go(func() error {
			part(ctx)
			return nil
		})
	}
	return group.Wait()
}
