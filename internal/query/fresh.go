package query

import "context"

type freshKey struct{}

// Fresh makes reads with the context ask the database, and not the cache, which then has the new answer for others.
func Fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }
