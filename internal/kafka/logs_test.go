package kafka_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/kafka"
	"auditsink/internal/testkit"
)

// TestLogs on a real broker: the ends of the log, as far as it is the one that was read.
func TestLogs(t *testing.T) {
	broker, topic := testkit.Kafka(t), testkit.Name(t)
	broker.CreateTopic(t, topic, 2, nil)
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	for range 10 {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: 1, Value: []byte("x")}).FirstErr())
	}
	cut := kadm.Offsets{}
	cut.AddOffset(topic, 1, 4, -1)
	_, err = kadm.NewClient(client).DeleteRecords(t.Context(), cut)
	require.NoError(t, err)
	id, logs, err := kafka.Logs(t.Context(), client, topic, nil)
	require.NoError(t, err)
	require.NotZero(t, id)
	require.Equal(t, map[int32]kafka.Log{0: {Kept: -1}, 1: {Start: 4, End: 10, Kept: -1}}, logs)
	_, logs, err = kafka.Logs(t.Context(), client, topic, map[int32]int32{1: 0})
	require.NoError(t, err)
	require.Equal(t, map[int32]kafka.Log{1: {Start: 4, End: 10, Kept: 10}}, logs)
	require.EqualValues(t, 10, logs[1].Known())
	_, _, err = kafka.Logs(t.Context(), client, topic, map[int32]int32{7: -1})
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
	_, _, err = kafka.Logs(t.Context(), client, topic+"-none", nil)
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
}

// TestLogsAskOnlyTheLeader: of a partition, whatever other brokers do.
func TestLogsAskOnlyTheLeader(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(2, "t"))
	require.NoError(t, err)
	defer cluster.Close()
	for p := range int32(2) {
		require.NoError(t, cluster.MoveTopicPartition("t", p, p))
	}
	addrs := cluster.ListenAddrs()
	var silent atomic.Bool
	client, err := kgo.NewClient(kgo.SeedBrokers(addrs[0]), kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		if silent.Load() && host == addrs[1] {
			<-ctx.Done() // packets are dropped
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		}
		return (&net.Dialer{}).DialContext(ctx, network, host)
	}))
	require.NoError(t, err)
	defer client.Close()
	silent.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, logs, err := kafka.Logs(ctx, client, "t", map[int32]int32{0: -1})
	require.NoError(t, err)
	require.Contains(t, logs, int32(0))
}
