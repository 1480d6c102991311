package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"go.uber.org/zap"

	"auditsink/internal/kafka"
	"auditsink/sink"
)

// mostFaults is how often in a row the brokers may refuse to give the next record, for no reason that is seen, until the lane halts.
const mostFaults = 5

// findWay finds out why the broker doesn't give a lane's next record, all before which is stored. Records that retention removed
// before we came to them become a gap on record. A log that ends below the position, and a topic that is no more, halt the lane.
func (c *member) findWay(ctx context.Context, l *lane) bool {
	times, why := l.fault()
	if !l.suspend(waiting, "the broker doesn't give the next record: "+why.Error()) {
		return l.isHalted() // which goes on record; else it is being given up
	}
	claim := l.claimed()
	id, log, ok := c.extent(ctx, l, claim)
	switch {
	case !ok:
		return false
	case log == nil:
		c.halt(l, topicGone(why))
		return true
	case id != l.topicID: // of the claim, which this goroutine made or began with
		c.halt(l, topicGone(errors.New("it was created again")))
		return true
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
	case times >= mostFaults:
		c.halt(l, fmt.Errorf("the brokers go on refusing the record at offset %d: %w", claim.Next, why))
		return true
	default: // a leader that had just changed, or something that passes
		c.log.Warn("the broker doesn't give the next record, trying again", zap.Stringer("lane", l.id), zap.Int64("offset", claim.Next), zap.Error(why))
		select {
		case <-time.After(time.Duration(times) * time.Second):
		case <-ctx.Done():
			return false
		}
	}
	return c.continueAt(ctx, l, claim)
}

// extent asks the brokers for the topic's ID and what they have of a lane, nil where they go on not knowing it. It reports false when ctx ends first.
func (c *member) extent(ctx context.Context, l *lane, claim sink.Claim) (id [16]byte, log *kafka.Log, ok bool) {
	giveUp := time.Now().Add(gonePatience)
	ok = c.insist(ctx, "ask the brokers what they have of lane "+l.id.String(), func() error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		topicID, logs, err := kafka.Logs(ctx, c.client, l.id.Topic, map[int32]int32{l.id.Partition: claim.LeaderEpoch})
		if errors.Is(err, kerr.UnknownTopicOrPartition) && time.Now().After(giveUp) {
			return nil
		}
		if err == nil {
			found := logs[l.id.Partition]
			id, log = topicID, &found
		}
		return err
	})
	return id, log, ok
}

// topicGone says what a topic that the brokers no longer have means.
func topicGone(err error) error {
	return fmt.Errorf("the topic was deleted, or deleted and created again, and nothing more of the old one is to be had (%w)", err)
}

// missing notes that the brokers don't tell the end of a lane's log, for want of the topic, and halts the lane where they go on not knowing it: the
// client would keep that to itself.
func (c *member) missing(ctx context.Context, l *lane, now time.Time) {
	l.mu.Lock()
	if l.unknown.IsZero() || l.phase != running {
		l.unknown = now
	}
	gone := now.Sub(l.unknown) >= gonePatience
	l.mu.Unlock()
	if !gone {
		return
	}
	// A partition without a leader may look the same there.
	details, err := c.admin.ListTopics(ctx, l.id.Topic)
	if err != nil || !errors.Is(details[l.id.Topic].Err, kerr.UnknownTopicOrPartition) {
		l.found()
		return
	}
	c.halt(l, topicGone(kerr.UnknownTopicOrPartition))
}

// found notes that the brokers know the lane.
func (l *lane) found() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unknown = time.Time{}
}
