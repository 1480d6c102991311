package consumer

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"auditsink/sink"
)

// lookInterval is how often lanes at rest are held against what Postgres says of them.
const lookInterval = 5 * time.Second

// look finds what a lane at rest would only learn with its next batch: that a failover set its position back, that somebody else claimed it; and
// that an operator has accepted or reset one that had halted.
func (c *member) look(ctx context.Context) {
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
	ctx, cancel := context.WithTimeout(ctx, lookInterval)
	defer cancel()
	names := slices.Collect(maps.Keys(topics))
	found, err := c.sink.InUse(ctx, names)
	if err != nil {
		if c.running.Err() == nil {
			c.log.Warn("the positions in Postgres can't be looked at", zap.Error(err))
		}
		return
	}
	rows := map[laneKey]*sink.LaneStatus{}
	for i := range found {
		rows[laneKey{found[i].Topic, found[i].Partition}] = &found[i]
	}
	var unclaimed []laneKey
	for key, l := range lanes {
		claim, row := had[key], rows[key]
		switch {
		case l.isHalted() && claim.Epoch == 0:
			unclaimed = append(unclaimed, key)
		case l.isHalted():
			c.lookAtHalted(ctx, l, claim, row)
		case row != nil && row.LaneID == claim.LaneID:
			l.check(claim, row.Epoch, row.NextOffset, row.Owner)
		case row != nil: // an operator accepted another log in its place
			l.check(claim, claim.Epoch+1, 0, "an operator")
		}
	}
	if len(unclaimed) > 0 {
		c.lookAtUnclaimed(ctx, lanes, unclaimed, found)
	}
}

// lookAtHalted has the group joined anew where an operator has let the lane, or another in its place, go on, or has given it up. Where the halt is not
// on record (the database was away, or a failover lost it) it puts it there.
func (c *member) lookAtHalted(ctx context.Context, l *lane, claim sink.Claim, row *sink.LaneStatus) {
	switch {
	case row == nil, row.Group == c.opts.Group && row.State == "active" && (row.LaneID != claim.LaneID || row.Epoch != claim.Epoch):
		c.rejoin(l)
	case row.State == "active" && row.LaneID == claim.LaneID:
		if err := c.sink.Halt(ctx, claim, c.opts.Owner, l.reason()); err != nil {
			c.log.Warn("the halt of a lane is not on record yet", zap.Stringer("lane", l.id), zap.Error(err))
		}
	}
}

// lookAtUnclaimed finds whether a lane that halted before it was claimed could be claimed now: the brokers know its topic, under the ID and the
// group of all its lanes in use, of which this one hasn't halted.
func (c *member) lookAtUnclaimed(ctx context.Context, lanes map[laneKey]*lane, unclaimed []laneKey, found []sink.LaneStatus) {
	topics := map[string]bool{}
	for _, key := range unclaimed {
		topics[key.topic] = true
	}
	details, err := c.admin.ListTopics(ctx, slices.Collect(maps.Keys(topics))...)
	if err != nil {
		return // lag is asked for too, and says so
	}
	for _, key := range unclaimed {
		topic := details[key.topic]
		_, exists := topic.Partitions[key.partition]
		free, known := topic.Err == nil && exists && topic.Partitions[key.partition].Err == nil, false
		for i := range found {
			f := &found[i]
			if f.Topic != key.topic {
				continue
			}
			known = true
			free = free && f.Group == c.opts.Group && f.TopicID == sink.TopicIDText(topic.ID) && (f.Partition != key.partition || f.State == "active")
		}
		for _, p := range topic.Partitions { // to become known, it needs all
			free = free && (known || p.Err == nil)
		}
		if free {
			c.rejoin(lanes[key])
			return
		}
	}
}

// rejoin ends this membership, so that the next can claim a lane that has halted in this one.
func (c *member) rejoin(l *lane) {
	if c.lane(l.id.Topic, l.id.Partition) != l {
		return // given up meanwhile
	}
	c.log.Info("a lane that had halted can be claimed again", zap.Stringer("lane", l.id))
	c.fail(errRejoin)
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
