package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
)

// lagInterval is how often the ends of the logs are asked for.
const lagInterval = 5 * time.Second

// measureLag compares the positions with the ends of the logs, as the brokers tell them: so the figures grow also while
// fetching is paused, or Postgres is away.
func (c *member) measureLag(ctx context.Context) {
	lanes := c.ownLanes()
	ctx, cancel := context.WithTimeout(ctx, lagInterval)
	defer cancel()
	topics := map[string]bool{}
	for _, l := range lanes {
		topics[l.id.Topic] = true
	}
	names := make([]string, 0, len(topics))
	for name := range topics {
		names = append(names, name)
	}
	if len(names) == 0 {
		if err := c.client.Ping(ctx); err == nil {
			c.brokerAnswered()
		}
		return
	}
	ends, err := c.admin.ListCommittedOffsets(ctx, names...)
	var partial *kadm.ShardErrors
	if err != nil && (!errors.As(err, &partial) || partial.AllFailed) {
		c.log.Warn("the ends of the logs can't be asked for: lag stands as it was", zap.Error(err))
		return
	}
	c.brokerAnswered()
	var begins kadm.ListedOffsets
	for _, l := range lanes {
		end, ok := ends.Lookup(l.id.Topic, l.id.Partition)
		if !ok || end.Err != nil {
			// Where a broker is away, the partitions that it leads are missing too.
			if whole := ends[l.id.Topic][-1].Err; errors.Is(end.Err, kerr.UnknownTopicOrPartition) || !ok && (err == nil || errors.Is(whole, kerr.UnknownTopicOrPartition)) {
				c.missing(ctx, l, time.Now())
			}
			continue
		}
		l.found()
		position := l.position()
		if position < 0 { // neither Postgres nor the group knows the lane: all that the log holds is ahead
			if begins == nil {
				if begins, err = c.admin.ListStartOffsets(ctx, names...); err != nil {
					continue // one broker may be away: the next time will tell
				}
			}
			begin, _ := begins.Lookup(l.id.Topic, l.id.Partition)
			position = begin.Offset
		}
		records := max(end.Offset-position, 0)
		age := l.lagAge(records, time.Now())
		c.mu.Lock() // the series goes with the lane, and must not come back after it
		if c.lanes[laneKey{l.id.Topic, l.id.Partition}] == l {
			c.metrics.SetLag(l.id.Topic, l.id.Partition, records, age)
		}
		c.mu.Unlock()
	}
}

func (c *member) brokerAnswered() {
	c.mu.Lock()
	c.brokersSeen = time.Now()
	c.mu.Unlock()
}

// lagAge is the age of the oldest record not stored: by its timestamp where it is here. Otherwise it came after the last one stored, and after there was no lag when
// that was last looked at; of a lane of which neither is known, since the lag was first seen. So it doesn't fall to 0 each time that fetches are slower than the database.
func (l *lane) lagAge(records int64, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case records == 0:
		l.behind, l.newest = now, -1
		return 0
	case l.oldest >= 0:
		return max(now.Sub(time.UnixMilli(l.oldest)), 0)
	case l.newest >= 0:
		return max(now.Sub(time.UnixMilli(l.newest)), 0)
	case l.behind.IsZero():
		l.behind = now
	}
	return now.Sub(l.behind)
}

// commitOffsets commits and waits for the answer. failed tells of which partitions that is not known to have been done, and err why.
func (c *member) commitOffsets(ctx context.Context, offsets map[string]map[int32]kgo.EpochOffset) (failed func(topic string, partition int32) bool, err error) {
	done := map[laneKey]bool{}
	c.client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, refused error) {
		if err = refused; err != nil || resp == nil {
			return
		}
		for _, topic := range resp.Topics {
			for _, partition := range topic.Partitions {
				done[laneKey{topic.Topic, partition.Partition}] = partition.ErrorCode == 0
				err = errors.Join(err, kerr.ErrorForCode(partition.ErrorCode))
			}
		}
	})
	return func(topic string, partition int32) bool { return !done[laneKey{topic, partition}] }, err
}
