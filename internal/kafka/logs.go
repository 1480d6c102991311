package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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
func Logs(ctx context.Context, client *kgo.Client, topic string, epochs map[int32]int32) (id [16]byte, logs map[int32]Log, err error) {
	admin := kadm.NewClient(client)
	details, err := admin.ListTopics(ctx, topic)
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
	if len(epochs) == 0 {
		return details[topic].ID, map[int32]Log{}, nil
	}
	starts, err := listed(ctx, client, earliest, topic, epochs)
	if err != nil {
		return id, nil, fmt.Errorf("list the start offsets of topic %q: %w", topic, err)
	}
	ends, err := listed(ctx, client, latest, topic, epochs)
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
	kept, err := admin.OffsetForLeaderEpoch(ctx, request)
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

// What ListOffsets takes in place of a timestamp (KIP-79).
const (
	latest   = -1
	earliest = -2
)

// listed lists an offset of some partitions. Only their leaders are asked: what is wrong with others doesn't matter.
func listed(ctx context.Context, client *kgo.Client, which int64, topic string, partitions map[int32]int32) (map[int32]int64, error) {
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	for partition := range partitions {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = partition, which
		t.Partitions = append(t.Partitions, p)
	}
	request := kmsg.NewPtrListOffsetsRequest()
	request.ReplicaID = -1 // a consumer
	request.Topics = append(request.Topics, t)
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	offsets := map[int32]int64{}
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("partition %d: %w", p.Partition, err)
			}
			offsets[p.Partition] = p.Offset
		}
	}
	for partition := range partitions {
		if _, ok := offsets[partition]; !ok {
			return nil, fmt.Errorf("partition %d: %w", partition, kerr.UnknownTopicOrPartition)
		}
	}
	return offsets, nil
}
