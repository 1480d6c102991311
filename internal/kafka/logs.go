package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
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

// Logs asks the brokers for a topic's ID and what they have of each of its partitions. epochs are the leader epochs of the last records read of
// partitions, where known: from them the brokers tell how far their log is still the one that was read (KIP-320).
func Logs(ctx context.Context, client *kadm.Client, topic string, epochs map[int32]int32) (id [16]byte, logs map[int32]Log, err error) {
	details, err := client.ListTopics(ctx, topic)
	if err == nil {
		err = details[topic].Err
	}
	if err != nil {
		return id, nil, fmt.Errorf("ask for the ID of topic %q: %w", topic, err)
	}
	logs = map[int32]Log{}
	starts, err := client.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return id, nil, fmt.Errorf("list the start offsets of topic %q: %w", topic, err)
	}
	ends, err := client.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return id, nil, fmt.Errorf("list the end offsets of topic %q: %w", topic, err)
	}
	var request kadm.OffsetForLeaderEpochRequest
	for partition, start := range starts[topic] {
		end, ok := ends.Lookup(topic, partition)
		if !ok {
			return id, nil, fmt.Errorf("list the end offsets of topic %q: partition %d is not among them", topic, partition)
		}
		logs[partition] = Log{Start: start.Offset, End: end.Offset, Kept: -1}
		if epoch, ok := epochs[partition]; ok && epoch >= 0 {
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
