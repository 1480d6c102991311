package sink

import (
	"context"
	"sync"
	"time"
)

// turnLimit bounds a turn. It is far more than a COPY takes, and than lock_timeout: what takes longer waits for nothing in most cases, its connection being dead.
var turnLimit = 30 * time.Second // other in a test

// turn waits until the batch may send its rows, and holds no connection meanwhile. What it returns ends the turn.
func (a *attempt) turn(ctx context.Context) (end func(), err error) {
	turns := a.turns
	if a.apart {
		turns = a.locked
	}
	select {
	case turns <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return sync.OnceFunc(func() { <-turns }), nil
}
