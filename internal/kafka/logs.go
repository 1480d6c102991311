package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Log is what the brokers have of one partition of a topic.
type Log struct {
	// Start and End are the offsets of the first record and behind the last one.
	Start, End int64
	// Kept is the offset up to which it is the log that somebody read before, -1 where the brokers can't tell.
	Kept int64
}

// Known is the offset up to which the log is the one that was read. End is only good enough where the brokers can't tell: it is the high
// watermark, which a new leader may not know yet.
func (l Log) Known() int64 {
	if l.Kept >= 0 {
		return l.Kept
	}
	return l.End
}

// Logs asks the brokers for a topic's ID and what they have of its partitions: of those that epochs names, or of all where it is nil. epochs are
// the leader epochs of the last records read, -1 where not known: from them the brokers tell how far their log is still the one that was read
// (KIP-320).
func Logs(ctx context.Context, client *kadm.Client, topic string, epochs map[int32]int32) (id [16]byte, logs map[int32]Log, err error) {
	details, err := client.ListTopics(ctx, topic)
	if err == nil {
		err = details[topic].Err
	}
	if err != nil {
		return id, nil, fmt.Errorf("ask for the ID of topic %q: %w", topic, err)
	}
	if epochs == nil {
		epochs = map[int32]int32{}
		for partition := range details[topic].Partitions {
			epochs[partition] = -1
		}
	}
	starts, err := listed(ctx, client.ListStartOffsets, topic, epochs)
	if err != nil {
		return id, nil, fmt.Errorf("list the start offsets of topic %q: %w", topic, err)
	}
	ends, err := listed(ctx, client.ListEndOffsets, topic, epochs)
	if err != nil {
		return id, nil, fmt.Errorf("list the end offsets of topic %q: %w", topic, err)
	}
	logs = map[int32]Log{}
	var request kadm.OffsetForLeaderEpochRequest
	for partition, epoch := range epochs {
		logs[partition] = Log{Start: starts[partition], End: ends[partition], Kept: -1}
		if epoch >= 0 {
			request.Add(topic, partition, epoch)
		}
	}
	if len(request) == 0 {
		return details[topic].ID, logs, nil
	}
	kept, err := client.OffsetForLeaderEpoch(ctx, request)
	if err != nil {
		return id, nil, fmt.Errorf("ask for the ends of the leader epochs of topic %q: %w", topic, err)
	}
	for partition, k := range kept[topic] {
		if k.Err != nil {
			return id, nil, fmt.Errorf("ask for the end of leader epoch %d of topic %q, partition %d: %w", epochs[partition], topic, partition, k.Err)
		}
		log := logs[partition]
		log.Kept = k.EndOffset
		logs[partition] = log
	}
	return details[topic].ID, logs, nil
}

// listed lists an offset of each of some partitions; what is wrong with others doesn't matter.
func listed(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), topic string, partitions map[int32]int32) (map[int32]int64, error) {
	all, err := list(ctx, topic)
	var partial *kadm.ShardErrors
	if err != nil && (!errors.As(err, &partial) || partial.AllFailed) {
		return nil, err
	}
	offsets := map[int32]int64{}
	for partition := range partitions {
		o, ok := all.Lookup(topic, partition)
		switch {
		case ok && o.Err != nil:
			return nil, fmt.Errorf("partition %d: %w", partition, o.Err)
		case !ok && err != nil:
			return nil, err
		case !ok:
			return nil, fmt.Errorf("partition %d: %w", partition, kerr.UnknownTopicOrPartition)
		}
		offsets[partition] = o.Offset
	}
	return offsets, nil
}
