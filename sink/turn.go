package sink

import (
	"context"
	"sync"
	"time"
)

// turnLimit bounds a turn: a COPY that takes longer waits for something else than the database's cores, a lock in most cases, or for nothing, its connection being dead.
var turnLimit = 5 * time.Second // other in a test

// turn waits until the batch may send its rows, and holds no connection meanwhile. What it returns ends the turn, which [turnLimit] does too.
func (a *attempt) turn(ctx context.Context) (end func(), err error) {
	if a.apart {
		return func() {}, nil
	}
	select {
	case a.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	pass := sync.OnceFunc(func() { <-a.turns })
	limit := time.AfterFunc(turnLimit, pass)
	return func() {
		limit.Stop()
		pass()
	}, nil
}
