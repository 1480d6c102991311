package consumer

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"auditsink/internal/kafka"
	"auditsink/sink"
)

// findWay finds out why the broker doesn't have a lane's next record, all before which is stored. Records that retention removed
// before we came to them become a gap on record; a log that ends below the position halts the lane.
func (c *Consumer) findWay(ctx context.Context, l *lane) bool {
	if !l.suspend(waiting, "the broker doesn't have the next record; asking what it has") {
		return false // it is being given up
	}
	claim := l.claimed()
	var log kafka.Log
	if !c.insist(ctx, "ask the brokers what they have of lane "+l.id.String(), func() error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, logs, err := kafka.Logs(ctx, c.admin, l.id.Topic, map[int32]int32{l.id.Partition: claim.LeaderEpoch})
		if err != nil {
			return err
		}
		var ok bool
		if log, ok = logs[l.id.Partition]; !ok {
			return fmt.Errorf("the topic has no partition %d", l.id.Partition)
		}
		return nil
	}) {
		return false
	}
	switch {
	case claim.Next < log.Start:
		gap := &sink.Batch{Claim: claim, To: log.Start, LeaderEpoch: claim.LeaderEpoch, Gap: sink.GapRetention}
		c.log.Error("records were removed by Kafka before they could be stored: a gap is put on record", zap.Stringer("lane", l.id),
			zap.Int64("from", gap.Claim.Next), zap.Int64("to", gap.To))
		if err := c.append(ctx, l, gap); err != nil {
			return ctx.Err() == nil && c.recover(ctx, l, err)
		}
		claim.Next = gap.To
	case log.Known() < claim.Next:
		c.halt(l, logCut(claim.Next, log.Known()))
		return true
	default: // a follower that was behind, or a leader that had just changed
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return false
		}
	}
	return c.continueAt(ctx, l, claim)
}
