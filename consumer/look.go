package consumer

import (
	"context"
	"time"

	"go.uber.org/zap"

	"auditsink/sink"
)

// lookInterval is how often lanes at rest are held against what Postgres says of them.
const lookInterval = 5 * time.Second

// look finds what a lane at rest would only learn with its next batch: that a failover set its position back, that somebody else claimed it; and
// that an operator has accepted or reset one that had halted.
func (c *Consumer) look(ctx context.Context) {
	lanes := map[laneKey]*lane{}
	had := map[laneKey]sink.Claim{} // before the database is asked: see lane.check
	topics := map[string]bool{}
	for _, l := range c.ownLanes() {
		key := laneKey{l.id.Topic, l.id.Partition}
		lanes[key], had[key], topics[l.id.Topic] = l, l.claimed(), true
	}
	if len(lanes) == 0 {
		return
	}
	names := make([]string, 0, len(topics))
	for name := range topics {
		names = append(names, name)
	}
	ctx, cancel := context.WithTimeout(ctx, lookInterval)
	defer cancel()
	found, err := c.sink.InUse(ctx, c.opts.Group, names)
	if err != nil {
		// Batches run into the same and say so; while there are none this alone does.
		c.log.Debug("the positions in Postgres can't be looked at", zap.Error(err))
		return
	}
	for i := range found {
		f := &found[i]
		key := laneKey{f.Topic, f.Partition}
		l, claim := lanes[key], had[key]
		if l == nil {
			continue
		}
		if l.isHalted() {
			if f.State == "active" && (f.LaneID != claim.LaneID || f.Epoch != claim.Epoch) {
				c.log.Info("a lane that had halted can be claimed again: joining the group anew", zap.Stringer("lane", l.id))
				c.fail(ErrRejoin)
				return
			}
			continue
		}
		if f.LaneID == claim.LaneID {
			l.check(claim, f.Epoch, f.NextOffset, f.Owner)
		}
	}
}

func (l *lane) isHalted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase == halted
}

// reason is why a lane waits or has halted.
func (l *lane) reason() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}
