package faults

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
)

// watch looks at the lanes all along, for what is only wrong for a while: an offset in Kafka above the position, a position or an epoch that goes back.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	found findings
	last  map[int32]standing
}

// standing is where a lane stood.
type standing struct{ epoch, next int64 }

// watchInterval is how often the lanes are looked at.
const watchInterval = 250 * time.Millisecond

// startWatch begins to look. end must follow. rewinds says that a failover may set positions back, and so below what Kafka was told.
func startWatch(ctx context.Context, db querier, admin *kadm.Client, group string, rewinds bool) *watch {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &watch{cancel: cancel, done: make(chan struct{}), last: map[int32]standing{}}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if !rewinds {
					w.look(ctx, db, admin, group)
				}
			}
		}
	}()
	return w
}

// look looks once. What is away for now is looked at the next time.
func (w *watch) look(ctx context.Context, db querier, admin *kadm.Client, group string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	committed, err := admin.FetchOffsets(ctx, group) // first, for the positions may only grow meanwhile
	if err != nil {
		return
	}
	rows, err := db.Query(ctx, `SELECT lane_id, topic, partition, epoch, next_offset FROM audit_lane WHERE state <> 'retired'`)
	if err != nil {
		return
	}
	var id, n int32
	var topic string
	var now standing
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = pgx.ForEachRow(rows, []any{&id, &topic, &n, &now.epoch, &now.next}, func() error { // what breaks off is looked at the next time
		name := fmt.Sprintf("%s/%d (lane %d)", topic, n, id)
		if at, ok := committed.Lookup(topic, n); ok && at.Err == nil && at.At > now.next {
			w.found.add(offset, name, at.At, "for a while Kafka's committed offset was above the position %d", now.next)
		}
		was, ok := w.last[id]
		if ok && now.next < was.next {
			w.found.add(position, name, now.next, "the position went back from %d", was.next)
		}
		if ok && now.epoch < was.epoch {
			w.found.add(position, name, now.next, "the epoch went back from %d to %d", was.epoch, now.epoch)
		}
		w.last[id] = now
		return nil
	})
}

// end ends the looking and returns what was wrong.
func (w *watch) end() *findings {
	w.cancel()
	<-w.done
	return &w.found
}
