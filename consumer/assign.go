package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/sink"
)

// assigned notes that the group took us in. The lanes come with claim, which knows their committed offsets.
func (c *Consumer) assigned(context.Context, *kgo.Client, map[string][]int32) {
	c.mu.Lock()
	c.joined, c.brokersSeen = true, time.Now()
	c.mu.Unlock()
}

// claim takes the lanes that the group assigned over in Postgres, and answers from where to fetch each. While the database is
// away it waits: an error would tear the group's session down. When ctx ends the session is over already, and the error makes the client ask
// again in the next one for the lanes that are still ours; without it they would stay assigned and never be fetched.
func (c *Consumer) claim(ctx context.Context, committed map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	lanes := c.adopt(ctx, committed)
	if lanes == nil {
		return nil, ctx.Err()
	}
	from := map[string]map[int32]kgo.Offset{}
	for _, l := range lanes {
		claim, err := c.claimLane(ctx, l)
		var refused *sink.RefusedError
		switch {
		case err == nil:
			c.start(l, claim)
			if from[l.id.Topic] == nil {
				from[l.id.Topic] = map[int32]kgo.Offset{}
			}
			from[l.id.Topic][l.id.Partition] = kgo.NewOffset().At(claim.Next).WithEpoch(claim.LeaderEpoch)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, &refused):
			c.halt(l, err)
		default:
			c.fail(err)
			return nil, err
		}
	}
	c.count()
	return from, nil
}

// adopt makes the lanes of an assignment, once the topics' IDs are known. It returns nil when ctx ends first.
func (c *Consumer) adopt(ctx context.Context, committed map[string]map[int32]kgo.Offset) []*lane {
	topics := slices.Collect(maps.Keys(committed))
	var details kadm.TopicDetails
	if !c.insist(ctx, "ask the brokers for the topics' IDs", func() (err error) {
		if details, err = c.admin.ListTopics(ctx, topics...); err != nil {
			return err
		}
		return details.Error()
	}) {
		return nil
	}
	var lanes []*lane
	for topic, partitions := range committed {
		for partition, offset := range partitions {
			l := newLane(sink.Lane{Topic: topic, TopicID: details[topic].ID, Partition: partition},
				limits{c.opts.FlushRows, c.opts.FlushBytes, c.opts.FlushInterval})
			l.committed = offset.EpochOffset().Offset
			l.claim.Next = max(l.committed, -1)
			l.why = "waits for Postgres to tell its position"
			lanes = append(lanes, l)
		}
	}
	slices.SortFunc(lanes, func(a, b *lane) int { return int(a.id.Partition) - int(b.id.Partition) })
	c.mu.Lock()
	for _, l := range lanes {
		key := laneKey{l.id.Topic, l.id.Partition}
		if old := c.lanes[key]; old != nil { // left over from a session that ended while it claimed
			old.cancel()
			c.metrics.BufferedBytes.Sub(float64(old.discard()))
			c.client.ResumeFetchPartitions(old.partition())
		}
		c.lanes[key] = l
	}
	c.mu.Unlock()
	c.count()
	return lanes
}

// insist tries until it succeeds, with growing pauses, and reports false when ctx ends first.
func (c *Consumer) insist(ctx context.Context, what string, try func() error) bool {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, 5*time.Second
	for {
		err := try()
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			c.log.Warn("waiting to "+what, zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// claimLane claims one lane, waiting out what passes, and making the lane known first where it is new.
func (c *Consumer) claimLane(ctx context.Context, l *lane) (claim sink.Claim, final error) {
	ok := c.insist(ctx, "claim lane "+l.id.String(), func() error {
		var err error
		claim, err = c.sink.Claim(ctx, l.id, c.opts.Group, c.opts.Owner)
		if errors.Is(err, sink.ErrUnregistered) {
			if err = c.register(ctx, l.id); err == nil {
				claim, err = c.sink.Claim(ctx, l.id, c.opts.Group, c.opts.Owner)
			}
		}
		if err == nil {
			return nil
		}
		var refused *sink.RefusedError
		var fatal *sink.FatalError
		if errors.As(err, &refused) || errors.As(err, &fatal) {
			final = err
			return nil
		}
		l.enter(waiting, err.Error())
		return err
	})
	if !ok {
		return sink.Claim{}, ctx.Err()
	}
	return claim, final
}

// register makes all lanes of a topic known to Postgres, with where each begins: at what the group committed, else at the end
// of the log that the settings name.
func (c *Consumer) register(ctx context.Context, lane sink.Lane) error {
	topic := lane.Topic
	begins, err := c.admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = begins.Error()
	}
	if err != nil {
		return fmt.Errorf("list the start offsets of topic %q: %w", topic, err)
	}
	ends, err := c.admin.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list the end offsets of topic %q: %w", topic, err)
	}
	committed, err := c.admin.FetchOffsetsForTopics(ctx, c.opts.Group, topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return fmt.Errorf("fetch the offsets that group %q committed for topic %q: %w", c.opts.Group, topic, err)
	}
	var starts []sink.Start
	begins.Each(func(begin kadm.ListedOffset) {
		s := sink.Start{Partition: begin.Partition, Offset: begin.Offset, LogStart: begin.Offset}
		end, _ := ends.Lookup(topic, begin.Partition)
		switch at, ok := committed.Lookup(topic, begin.Partition); {
		case ok && at.At >= 0:
			s.Offset = max(at.At, begin.Offset)
		case c.opts.FromLatest:
			s.Offset = max(end.Offset, begin.Offset)
		}
		starts = append(starts, s)
	})
	return c.sink.Register(ctx, topic, lane.TopicID, c.opts.Group, starts)
}

// start lets a claimed lane run.
func (c *Consumer) start(l *lane, claim sink.Claim) {
	ctx, cancel := context.WithCancel(c.running)
	l.cancel = cancel
	l.place(claim, running)
	c.stores.Go(func() {
		defer close(l.done)
		defer cancel()
		c.store(ctx, l)
	})
	c.log.Info("lane claimed", zap.Stringer("lane", l.id), zap.Int32("lane_id", claim.LaneID), zap.Int64("epoch", claim.Epoch), zap.Int64("position", claim.Next))
}

// revoked gives lanes up in good order: what is buffered is stored and committed first, as far as time allows.
func (c *Consumer) revoked(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	c.drain(c.named(partitions))
}

// lost gives lanes up that are somebody else's already: nothing of them is stored or committed any more.
func (c *Consumer) lost(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	c.remove(c.named(partitions))
}

func (c *Consumer) named(partitions map[string][]int32) []*lane {
	var lanes []*lane
	for topic, numbers := range partitions {
		for _, n := range numbers {
			if l := c.lane(topic, n); l != nil {
				lanes = append(lanes, l)
			}
		}
	}
	return lanes
}

// drain stores what the lanes have buffered, within the deadline, commits their offsets, and removes them.
func (c *Consumer) drain(lanes []*lane) {
	if len(lanes) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(c.running, c.opts.DrainTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, l := range lanes {
		l.mu.Lock()
		if l.phase == running {
			l.phase = draining
		}
		drains := l.phase == draining
		l.mu.Unlock()
		l.signal()
		if !drains {
			continue
		}
		all.Go(func() {
			select {
			case <-l.done:
			case <-ctx.Done():
				c.log.Warn("lane given up with records not stored: they are read again from its position", zap.Stringer("lane", l.id), zap.Int64("position", l.position()))
			}
		})
	}
	all.Wait()
	committing, done := context.WithTimeout(c.running, 5*time.Second)
	defer done()
	c.commit(committing)
	c.remove(lanes)
}

// remove forgets lanes, at once.
func (c *Consumer) remove(lanes []*lane) {
	// Not while offsets are being committed: none may be for a lane after it was given up.
	c.committing.Lock()
	c.mu.Lock()
	for _, l := range lanes {
		delete(c.lanes, laneKey{l.id.Topic, l.id.Partition})
	}
	c.mu.Unlock()
	c.committing.Unlock()
	for _, l := range lanes {
		l.cancel()
		c.metrics.BufferedBytes.Sub(float64(l.discard()))
		// A pause outlives the assignment in the client: the lane would come back paused.
		c.client.ResumeFetchPartitions(l.partition())
		c.metrics.DropLane(l.id.Topic, l.id.Partition)
	}
	c.count()
}
