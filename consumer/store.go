package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/internal/failpoint"
	"auditsink/sink"
)

// store is a lane's goroutine: batch after batch into Postgres, and whatever comes in between, until the lane ends.
func (c *member) store(ctx context.Context, l *lane) {
	for {
		batch, trouble := l.next(ctx)
		if batch != nil {
			trouble = c.append(ctx, l, batch)
		} else if trouble == nil {
			return
		}
		if trouble != nil && (ctx.Err() != nil || !c.recover(ctx, l, trouble)) {
			return
		}
	}
}

// append stores a batch and moves the lane on.
func (c *member) append(ctx context.Context, l *lane, batch *sink.Batch) error {
	if _, err := c.sink.Append(ctx, batch); err != nil {
		return err
	}
	c.metrics.BufferedBytes.Sub(float64(l.stored(batch)))
	select {
	case c.freed <- struct{}{}:
	default: // the poll loop has one to come already
	}
	return nil
}

// recover sees to what is wrong with a lane, and reports whether it lives on.
func (c *member) recover(ctx context.Context, l *lane, trouble error) bool {
	var fenced *sink.FencedError
	var moved *sink.MovedError
	var halt *sink.HaltError
	switch {
	case errors.As(trouble, &fenced), errors.As(trouble, &moved):
		return c.reclaim(ctx, l, trouble)
	case errors.Is(trouble, errAstray):
		return c.findWay(ctx, l)
	case errors.As(trouble, &halt):
		c.halt(l, trouble)
		return true
	case errors.Is(trouble, errHalted):
		c.insist(ctx, "put on record that lane "+l.id.String()+" has halted", func() error {
			return c.sink.Halt(ctx, l.claimed(), c.opts.Owner, l.reason())
		})
		return false
	}
	c.fail(trouble)
	return false
}

// reclaim drops what is buffered and, if the lane is still ours, continues from where Postgres says. A worker that was cut off learns from
// its heartbeats that the lane has gone; so two of them must have been answered, for the first may have been on its way already.
func (c *member) reclaim(ctx context.Context, l *lane, why error) bool {
	c.log.Warn("lane lost its claim or its place: dropping what is buffered", zap.Stringer("lane", l.id), zap.Error(why))
	was := l.claimed()
	if !l.suspend(waiting, why.Error()) {
		return l.isHalted() // which goes on record; else it is being given up
	}
	c.metrics.BufferedBytes.Sub(float64(l.discard()))
	for since := c.beats.Load(); c.beats.Load() < since+2; {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
	ids, unknown, ok := c.topicIDs(ctx, gonePatience, l.id.Topic)
	if !ok {
		return false
	}
	if err := unknown[l.id.Topic]; err != nil {
		c.halt(l, topicGone(err))
		return true
	}
	claim, err := c.claimLane(ctx, l, ids[l.id.Topic])
	if err != nil {
		if refused := (*sink.RefusedError)(nil); errors.As(err, &refused) {
			c.halt(l, err)
			return true
		}
		if ctx.Err() == nil {
			c.fail(err)
		}
		return false
	}
	c.log.Info("lane claimed again", zap.Stringer("lane", l.id), zap.Int64("epoch", claim.Epoch), zap.Int64("position", claim.Next))
	switch {
	case claim.LaneID != was.LaneID: // an operator accepted another log in its place
	case claim.Next < was.Next:
		c.rewound(l, claim, was.Next)
		c.noted.Store(claim.LaneID, true)
	default:
		return c.continueAt(ctx, l, claim)
	}
	// The client ignores an offset for a lane that it hasn't begun to fetch, or whose log it is comparing: only a fresh assignment is sure to
	// begin further back.
	c.fail(errRejoin)
	return false
}

// rewound says that the database stands behind what was stored, and puts it on record: also where this membership ends meanwhile, since other lanes
// were set back too.
func (c *member) rewound(l *lane, claim sink.Claim, was int64) {
	c.metrics.Rewound.Inc()
	c.log.Error("the lane was set back: fetching its records again", zap.Stringer("lane", l.id), zap.Int64("was", was), zap.Int64("position", claim.Next))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := c.sink.Rewound(ctx, claim, was, c.opts.Owner, "the position was set back (a failover or a restore that lost transactions, or lanes reset): its records are fetched again")
	if err != nil {
		c.log.Error("that the lane was set back is not on record", zap.Stringer("lane", l.id), zap.Error(err))
	}
}

// continueAt has a lane that waits fetched from where a claim says, which isn't below where it was. The log up to there must be the one that was
// read: the client would forget that it had meant to compare. It reports whether the lane lives on.
func (c *member) continueAt(ctx context.Context, l *lane, claim sink.Claim) bool {
	l.place(claim)
	_, log, ok := c.extent(ctx, l, claim)
	if !ok {
		return false
	}
	if log != nil && log.Known() < claim.Next {
		c.halt(l, logCut(claim.Next, log.Known()))
		return true
	}
	select {
	case c.moves <- l:
	case <-ctx.Done():
		return false
	}
	c.interrupt()
	return true
}

// commit tells Kafka the positions, for lag display and other tools: we never read them again for a lane that Postgres knows.
func (c *member) commit(ctx context.Context) {
	c.committing.Lock()
	defer c.committing.Unlock()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	var lanes []*lane
	for _, l := range c.ownLanes() {
		l.mu.Lock()
		// A lane that waits for its claim knows no position of its own.
		if l.claim.Epoch > 0 && l.phase != waiting && l.claim.Next != l.committed {
			if offsets[l.id.Topic] == nil {
				offsets[l.id.Topic] = map[int32]kgo.EpochOffset{}
			}
			offsets[l.id.Topic][l.id.Partition] = kgo.EpochOffset{Epoch: l.claim.LeaderEpoch, Offset: l.claim.Next}
			lanes = append(lanes, l)
		}
		l.mu.Unlock()
	}
	if len(lanes) == 0 {
		return
	}
	failpoint.Hit("consumer.committing")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	failed, err := c.commitOffsets(ctx, offsets)
	if err != nil {
		c.log.Warn("offsets not committed to Kafka, trying again: nothing is lost, its lag display is behind", zap.Error(err))
	}
	for _, l := range lanes {
		if failed(l.id.Topic, l.id.Partition) {
			continue
		}
		l.mu.Lock()
		l.committed = offsets[l.id.Topic][l.id.Partition].Offset
		l.mu.Unlock()
	}
}
