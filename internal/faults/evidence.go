package faults

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// laneLog is one partition of a topic as Kafka has it.
type laneLog struct {
	start, end int64
	// committed is the group's offset, -1 where it has none.
	committed int64
	records   map[int64]*kgo.Record // those that a reader of committed records sees
}

// topicLog is a topic as Kafka has it.
type topicLog struct {
	incarnation
	lanes map[int32]*laneLog
}

// readLog reads a topic from its start to its end with a plain client, and what the group committed. records says whether to read the records too.
func readLog(ctx context.Context, seeds []string, topic, group string, records bool) (*topicLog, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.DialTimeout(2*time.Second), kgo.MetadataMinAge(100*time.Millisecond),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("make a reader: %w", err)
	}
	defer client.Close()
	l, err := offsets(ctx, kadm.NewClient(client), topic, group)
	if err != nil || !records {
		return l, err
	}
	from := map[int32]kgo.Offset{}
	for n, lane := range l.lanes {
		if lane.start < lane.end {
			from[n] = kgo.NewOffset().At(lane.start)
		}
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	for len(from) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read topic %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			lane := l.lanes[r.Partition]
			if !r.Attrs.IsControl() {
				lane.records[r.Offset] = r
			}
			if r.Offset+1 >= lane.end {
				delete(from, r.Partition)
			}
		})
	}
	return l, nil
}

// offsets asks for the ends of a topic's logs and for what the group committed.
func offsets(ctx context.Context, admin *kadm.Client, topic, group string) (*topicLog, error) {
	details, err := admin.ListTopics(ctx, topic)
	if err == nil {
		err = details.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask for topic %s: %w", topic, err)
	}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list the start offsets of %s: %w", topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list the end offsets of %s: %w", topic, err)
	}
	committed, err := admin.FetchOffsetsForTopics(ctx, group, topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("fetch the offsets of group %s: %w", group, err)
	}
	l := &topicLog{incarnation: incarnation{topic, details[topic].ID}, lanes: map[int32]*laneLog{}}
	starts.Each(func(start kadm.ListedOffset) {
		lane := &laneLog{start: start.Offset, committed: -1, records: map[int64]*kgo.Record{}}
		if end, ok := ends.Lookup(topic, start.Partition); ok {
			lane.end = end.Offset
		}
		if at, ok := committed.Lookup(topic, start.Partition); ok {
			lane.committed = at.At
		}
		l.lanes[start.Partition] = lane
	})
	return l, nil
}
