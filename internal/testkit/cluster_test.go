package testkit

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestKafkaCluster(t *testing.T) {
	began := time.Now()
	cluster := OwnKafkaCluster(t, KafkaOptions{})
	t.Logf("started in %v", time.Since(began))
	topic := Name(t)
	cluster.CreateTopic(t, topic, 3, nil)
	nodes := cluster.Nodes()
	require.Len(t, nodes, 3)

	// The leader moves where we say, and with the death of one; the group's coordinator too.
	for _, node := range nodes[1:] {
		require.NoError(t, cluster.MoveLeader(t.Context(), topic, 1, node))
		leader, err := cluster.Leader(t.Context(), topic, 1)
		require.NoError(t, err)
		require.Equal(t, node.ID(), leader.ID())
	}
	produceTo(t, cluster.Brokers(), topic, 1, 10)
	require.NoError(t, nodes[2].Kill())
	produceTo(t, cluster.Brokers(), topic, 1, 10)
	leader, err := cluster.Leader(t.Context(), topic, 1)
	require.NoError(t, err)
	require.NotEqual(t, nodes[2].ID(), leader.ID())
	require.Equal(t, offsets{0, 20}, offsetsOf(t, &cluster.topics, topic, 1), "nothing acknowledged is lost")
	group := newClient(t, cluster.Brokers(), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(Name(t)))
	for group.PollFetches(t.Context()).NumRecords() == 0 { // it may try the dead one first
		require.NoError(t, t.Context().Err())
	}
	require.NoError(t, nodes[2].Restart(t.Context()))

	require.NoError(t, cluster.DeleteRecords(t.Context(), topic, 1, 7))
	require.Equal(t, offsets{7, 20}, offsetsOf(t, &cluster.topics, topic, 1))
	require.NoError(t, cluster.DeleteTopic(t.Context(), topic))
	require.NoError(t, cluster.NewTopic(t.Context(), topic, 2, nil))
	require.Equal(t, offsets{0, 0}, offsetsOf(t, &cluster.topics, topic, 1))

	// With two replicas and an unclean election a partition loses acknowledged records.
	truncated := topic + "-truncated"
	cluster.CreateTopic(t, truncated, 1, map[string]string{"unclean.leader.election.enable": "true", "min.insync.replicas": "1"})
	require.NoError(t, cluster.Reassign(t.Context(), truncated, 0, nodes[0], nodes[1]))
	produceTo(t, cluster.Brokers(), truncated, 0, 10)
	require.NoError(t, nodes[1].Kill())
	produceTo(t, cluster.Brokers(), truncated, 0, 10)
	require.NoError(t, nodes[0].Kill())
	require.NoError(t, nodes[1].Restart(t.Context()))
	require.NoError(t, poll(t.Context(), 50*time.Millisecond, func() error {
		leader, err := cluster.Leader(t.Context(), truncated, 0)
		if err == nil && leader != nodes[1] {
			err = errors.New("another leads")
		}
		return err
	}))
	require.Equal(t, offsets{0, 10}, offsetsOf(t, &cluster.topics, truncated, 0))
}

func TestDeleteRecordsAndTopic(t *testing.T) {
	broker := Kafka(t)
	topic := Name(t)
	broker.CreateTopic(t, topic, 2, nil)
	produceTo(t, broker.Brokers(), topic, 1, 10)
	require.NoError(t, broker.DeleteRecords(t.Context(), topic, 1, 4))
	require.Equal(t, offsets{4, 10}, offsetsOf(t, &broker.topics, topic, 1))
	require.NoError(t, broker.DeleteRecords(t.Context(), topic, 1, -1))
	require.Equal(t, offsets{10, 10}, offsetsOf(t, &broker.topics, topic, 1))
	require.ErrorContains(t, broker.DeleteRecords(t.Context(), topic, 1, 99), "OFFSET_OUT_OF_RANGE")

	require.NoError(t, broker.DeleteTopic(t.Context(), topic))
	require.ErrorContains(t, broker.DeleteTopic(t.Context(), topic), "UNKNOWN_TOPIC_OR_PARTITION")
	broker.CreateTopic(t, topic, 1, nil)
	require.Equal(t, offsets{0, 0}, offsetsOf(t, &broker.topics, topic, 0))
}

// produceTo produces records to a partition and waits for their acknowledgement by all replicas in sync.
func produceTo(t *testing.T, brokers []string, topic string, partition int32, count int) {
	t.Helper()
	client := newClient(t, brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()))
	for i := range count {
		record := &kgo.Record{Topic: topic, Partition: partition, Value: []byte(strconv.Itoa(i))}
		require.NoError(t, client.ProduceSync(t.Context(), record).FirstErr())
	}
}

// offsets are a partition's first offset and the one after its last.
type offsets struct{ start, end int64 }

func offsetsOf(t *testing.T, cluster *topics, topic string, partition int32) offsets {
	t.Helper()
	var got offsets
	require.NoError(t, cluster.admin(func(client *kadm.Client) error {
		start, err := client.ListStartOffsets(t.Context(), topic)
		require.NoError(t, err)
		end, err := client.ListEndOffsets(t.Context(), topic)
		require.NoError(t, err)
		got = offsets{start[topic][partition].Offset, end[topic][partition].Offset}
		return errors.Join(start.Error(), end.Error())
	}))
	return got
}
