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
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/failpoint"
	"auditsink/sink"
)

// assigned notes that the group took us in. The lanes come with claim, which knows their committed offsets.
func (c *member) assigned(_ context.Context, _ *kgo.Client, added map[string][]int32) {
	<-c.made
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined, c.brokersSeen = true, time.Now()
	for topic, partitions := range added {
		for _, p := range partitions {
			c.expected[laneKey{topic, p}] = true
		}
	}
}

// claim takes the lanes that the group assigned over in Postgres, and answers from where to fetch each. While the database is
// away it waits: an error would tear the group's session down. When ctx ends the session is over already, and the error makes the client ask
// again in the next one for the lanes that are still ours; without it they would stay assigned and never be fetched.
func (c *member) claim(ctx context.Context, committed map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-c.made
	c.adoptForgotten(committed)
	lanes := c.adopt(committed)
	ids, unknown, ok := c.topicIDs(ctx, claimPatience, slices.Collect(maps.Keys(committed))...)
	if !ok {
		return nil, ctx.Err()
	}
	var mu sync.Mutex // guards claims
	claims := map[*lane]sink.Claim{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(claimsAtOnce)
	for _, l := range lanes {
		if err := unknown[l.id.Topic]; err != nil { // the other topics must not wait for it
			c.halt(l, topicGone(err))
			continue
		}
		group.Go(func() error {
			claim, err := c.claimLane(ctx, l, ids[l.id.Topic])
			var refused *sink.RefusedError
			switch {
			case err == nil:
				mu.Lock()
				defer mu.Unlock()
				claims[l] = claim
				return nil
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.As(err, &refused):
				c.halt(l, err)
				return nil
			}
			c.fail(err)
			return err
		})
	}
	err := group.Wait()
	failpoint.Hit("consumer.claimed")
	from := map[string]map[int32]kgo.Offset{}
	for l, claim := range claims {
		if err != nil || !c.start(l, claim) {
			continue
		}
		// Kafka's offset is never above the position, unless the database has lost it since.
		was := committed[l.id.Topic][l.id.Partition].EpochOffset().Offset
		if _, known := c.noted.LoadAndDelete(claim.LaneID); !known && claim.Epoch > 1 && was > claim.Next {
			c.rewound(l, claim, was)
		}
		if from[l.id.Topic] == nil {
			from[l.id.Topic] = map[int32]kgo.Offset{}
		}
		from[l.id.Topic][l.id.Partition] = kgo.NewOffset().At(claim.Next).WithEpoch(claim.LeaderEpoch)
	}
	c.count()
	return from, err
}

// claimPatience is how long an assignment waits for the brokers to know a topic that they assigned us lanes of: one that was just made may not
// have got about. The other topics' lanes wait for it too, and a look finds it when it comes after all.
const claimPatience = 5 * time.Second

// gonePatience is how long the brokers must go on not knowing a topic until its lanes halt for good: brokers that have just started, or have no quorum,
// may not know what they have.
var gonePatience = 2 * time.Minute // shorter in a test

// topicIDs asks the brokers for the IDs of topics, as long as ctx allows. unknown are those that they don't know for as long as patience.
func (c *member) topicIDs(ctx context.Context, patience time.Duration, topics ...string) (ids map[string][16]byte, unknown map[string]error, ok bool) {
	giveUp := time.Now().Add(patience)
	ok = c.insist(ctx, "ask the brokers for the topics' IDs", func() error {
		details, err := c.admin.ListTopics(ctx, topics...)
		if err != nil {
			return err
		}
		ids, unknown = map[string][16]byte{}, map[string]error{}
		for _, topic := range topics {
			err := details[topic].Err
			switch {
			case err == nil:
				ids[topic] = details[topic].ID
			case kerr.IsRetriable(err) && time.Now().Before(giveUp):
				return fmt.Errorf("topic %q: %w", topic, err)
			default:
				unknown[topic] = err
			}
		}
		return nil
	})
	return ids, unknown, ok
}

// claimsAtOnce bounds the connections that claiming an assignment takes.
const claimsAtOnce = 4

// adoptForgotten halts the lanes that were assigned and come without a committed offset: the coordinator refused to tell it, and the client, which
// doesn't ask again, will not fetch them. A look finds when they can be had.
func (c *member) adoptForgotten(committed map[string]map[int32]kgo.Offset) {
	forgotten := map[string]map[int32]kgo.Offset{}
	c.mu.Lock()
	for key := range c.expected {
		if _, ok := committed[key.topic][key.partition]; !ok && c.lanes[key] == nil {
			if forgotten[key.topic] == nil {
				forgotten[key.topic] = map[int32]kgo.Offset{}
			}
			forgotten[key.topic][key.partition] = kgo.NewOffset().At(-1)
		}
	}
	clear(c.expected)
	c.mu.Unlock()
	for _, l := range c.adopt(forgotten) {
		c.halt(l, errors.New("the group's coordinator doesn't tell the committed offset: joining anew as soon as the topic can be had"))
	}
}

// adopt makes the lanes of an assignment, which wait for their claims.
func (c *member) adopt(committed map[string]map[int32]kgo.Offset) []*lane {
	var lanes []*lane
	c.mu.Lock()
	for topic, partitions := range committed {
		for partition, offset := range partitions {
			l := newLane(c.running, sink.Lane{Topic: topic, Partition: partition},
				limits{c.opts.FlushRows, c.opts.FlushBytes, c.opts.FlushInterval}, c.tap(topic, partition))
			l.committed = offset.EpochOffset().Offset
			l.claim.Next = max(l.committed, -1)
			l.why = "waits for Postgres to tell its position"
			key := laneKey{topic, partition}
			if old := c.lanes[key]; old != nil { // left over from a session that ended while it claimed
				old.release()
				c.metrics.BufferedBytes.Sub(float64(old.discard()))
			}
			c.lanes[key] = l
			lanes = append(lanes, l)
		}
	}
	c.mu.Unlock()
	c.count()
	return lanes
}

// insist tries until it succeeds, with growing pauses, and reports false when ctx ends first.
func (c *member) insist(ctx context.Context, what string, try func() error) bool {
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
func (c *member) claimLane(ctx context.Context, l *lane, topicID [16]byte) (claim sink.Claim, final error) {
	id := sink.Lane{Topic: l.id.Topic, TopicID: topicID, Partition: l.id.Partition}
	giveUp := time.Now().Add(claimPatience)
	ok := c.insist(ctx, "claim lane "+id.String(), func() error {
		var err error
		claim, err = c.sink.Claim(ctx, id, c.opts.Group, c.opts.Owner)
		if errors.Is(err, sink.ErrUnregistered) {
			var starts []sink.Start
			if starts, err = c.starts(ctx, id.Topic); err != nil && time.Now().After(giveUp) {
				// Others don't wait for the brokers that lead this topic; a look finds when they are back.
				final = &sink.RefusedError{Reason: "the topic is new, and not all of its partitions can be had: " + err.Error()}
				return nil
			}
			if err == nil {
				err = c.sink.Register(ctx, id.Topic, id.TopicID, c.opts.Group, starts)
			}
			if err == nil {
				claim, err = c.sink.Claim(ctx, id, c.opts.Group, c.opts.Owner)
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
		l.suspend(waiting, err.Error())
		return err
	})
	if !ok {
		return sink.Claim{}, ctx.Err()
	}
	l.mu.Lock()
	l.topicID = topicID
	l.mu.Unlock()
	return claim, final
}

// starts tells where the lanes of a topic that Postgres doesn't know yet begin: at what the group committed, else at the end of the log that the
// settings name.
func (c *member) starts(ctx context.Context, topic string) ([]sink.Start, error) {
	ctx, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	begins, err := c.admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = begins.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list the start offsets of topic %q: %w", topic, err)
	}
	ends, err := c.admin.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list the end offsets of topic %q: %w", topic, err)
	}
	committed, err := c.admin.FetchOffsetsForTopics(ctx, c.opts.Group, topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("fetch the offsets that group %q committed for topic %q: %w", c.opts.Group, topic, err)
	}
	var starts []sink.Start
	begins.Each(func(begin kadm.ListedOffset) {
		s := sink.Start{Partition: begin.Partition, Offset: begin.Offset, LogStart: begin.Offset}
		end, _ := ends.Lookup(topic, begin.Partition)
		switch at, ok := committed.Lookup(topic, begin.Partition); {
		case ok && at.At >= 0:
			s.Offset = at.At // below the log's start where retention was faster
		case c.opts.FromLatest:
			s.Offset = max(end.Offset, begin.Offset)
		}
		starts = append(starts, s)
	})
	return starts, nil
}

// start lets a claimed lane run. It reports false where the lane was given up meanwhile.
func (c *member) start(l *lane, claim sink.Claim) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping || c.lanes[laneKey{l.id.Topic, l.id.Partition}] != l {
		return false
	}
	l.place(claim)
	if !l.resume() {
		return false
	}
	c.stores.Go(func() {
		defer close(l.done)
		c.store(l.ctx, l)
	})
	c.log.Info("lane claimed", zap.Stringer("lane", l.id), zap.Int32("lane_id", claim.LaneID), zap.Int64("epoch", claim.Epoch), zap.Int64("position", claim.Next))
	return true
}

// revoked gives lanes up in good order: what is buffered is stored and committed first, as far as time allows.
func (c *member) revoked(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	<-c.made
	failpoint.Hit("consumer.revoked")
	c.drain(c.named(partitions))
}

// lost gives lanes up that are somebody else's already: nothing of them is stored or committed any more.
func (c *member) lost(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	<-c.made
	c.mu.Lock()
	c.joined = false // until the next assignment
	c.mu.Unlock()
	c.remove(c.named(partitions))
}

func (c *member) named(partitions map[string][]int32) []*lane {
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
func (c *member) drain(lanes []*lane) {
	if len(lanes) == 0 {
		return
	}
	deadline := time.Now().Add(c.opts.DrainTimeout)
	c.mu.Lock()
	if !c.stopBy.IsZero() && c.stopBy.Before(deadline) {
		deadline = c.stopBy
	}
	c.mu.Unlock()
	ctx, cancel := context.WithDeadline(c.running, deadline)
	defer cancel()
	var all sync.WaitGroup
	for _, l := range lanes {
		if !l.drain() {
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
func (c *member) remove(lanes []*lane) {
	// Not while offsets are being committed: none may be for a lane after it was given up.
	c.committing.Lock()
	c.mu.Lock()
	for _, l := range lanes {
		delete(c.lanes, laneKey{l.id.Topic, l.id.Partition})
	}
	c.mu.Unlock()
	c.committing.Unlock()
	for _, l := range lanes {
		l.release()
		c.metrics.BufferedBytes.Sub(float64(l.discard()))
		c.metrics.DropLane(l.id.Topic, l.id.Partition)
	}
	c.count()
}
