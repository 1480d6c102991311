package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"auditsink/consumer"
	"auditsink/internal/testkit"
	"auditsink/sink"
)

// newFakeBed is a bed on a cluster of two brokers in this process, of which the first coordinates the bed's group.
func newFakeBed(t *testing.T, topics ...kfake.Opt) (*bed, *kfake.Cluster) {
	cluster, err := kfake.NewCluster(append(topics, kfake.NumBrokers(2))...)
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	b := &bed{T: t, topic: "old", seeds: cluster.ListenAddrs()[:1], url: testkit.Postgres(t, 18)}
	for i := 0; b.group == ""; i++ {
		if group := fmt.Sprint("g", i); cluster.CoordinatorFor(group) == 0 {
			b.group = group
		}
	}
	b.prepare()
	b.client, err = kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	t.Cleanup(b.client.Close)
	b.admin = kadm.NewClient(b.client)
	return b, cluster
}

// TestNewTopicHoldsUpNobody: of a new topic one partition's leader is away, so that nobody can say where its lanes begin. Lanes of another topic in
// the same assignment go on.
func TestNewTopicHoldsUpNobody(t *testing.T) {
	b, cluster := newFakeBed(t, kfake.SeedTopics(2, "old"), kfake.SeedTopics(2, "new"))
	for p := range int32(2) {
		require.NoError(t, cluster.MoveTopicPartition("old", p, 0))
		require.NoError(t, cluster.MoveTopicPartition("new", p, p)) // new/1 is led by the other
	}
	var back atomic.Bool
	far := cluster.ListenAddrs()[1]
	b.produce(10)
	w := b.start(b.options(), kgo.ConsumeTopics("old", "new"), kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		if host == far && !back.Load() {
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}
		return (&net.Dialer{}).DialContext(ctx, network, host)
	}))
	b.eventually("the other topic is stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 10 })
	b.eventually("the new one waits", func() bool { return value(w.metrics.LanesHalted) == 2 })
	require.ErrorContains(t, w.Ready(), "new")
	back.Store(true)
	require.NoError(t, b.client.ProduceSync(t.Context(), &kgo.Record{Topic: "new", Value: b.event()}).FirstErr())
	b.eventually("the new one is stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 11 })
}

// TestCommittedOffsetRefused: the coordinator doesn't tell the committed offset of one lane, and the client drops the lane without a word. It is
// seen, and comes back.
func TestCommittedOffsetRefused(t *testing.T) {
	b, cluster := newFakeBed(t, kfake.SeedTopics(2, "old"))
	var refused atomic.Int32
	cluster.ControlKey(int16(kmsg.OffsetFetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if refused.Add(1) > 5 {
			return nil, nil, false
		}
		req, _ := kreq.(*kmsg.OffsetFetchRequest)
		resp, _ := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		g := kmsg.NewOffsetFetchResponseGroup()
		g.Group = req.Groups[0].Group
		for _, topic := range req.Groups[0].Topics {
			answer := kmsg.NewOffsetFetchResponseGroupTopic()
			answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				partition := kmsg.NewOffsetFetchResponseGroupTopicPartition()
				partition.Partition, partition.Offset = p, -1
				if p == 1 {
					partition.ErrorCode = kerr.TopicAuthorizationFailed.Code
				}
				answer.Partitions = append(answer.Partitions, partition)
			}
			g.Topics = append(g.Topics, answer)
		}
		resp.Groups = append(resp.Groups, g)
		return resp, nil, true
	})
	b.produce(10)
	b.start(b.options())
	b.eventually("both lanes are stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 10 })
	require.Greater(t, refused.Load(), int32(1))
}

// TestFailoverOfAllLanes: each lane that was set back is on record, and all come back.
func TestFailoverOfAllLanes(t *testing.T) {
	const lanes = 16
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), lanes)
	b.start(b.options())
	b.produce(1600)
	b.arrived()
	for p := range int32(lanes) {
		b.setBack(p, 10)
	}
	b.arrived()
	require.EqualValues(t, lanes, b.number(`SELECT count(DISTINCT lane_id) FROM audit_lane_event WHERE kind = 'rewound' AND to_offset = 10`))
}

// TestTopicGoneAndAccepted: the worker no longer waits for it.
func TestTopicGoneAndAccepted(t *testing.T) {
	consumer.SetGonePatience(t, 3*time.Second)
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 15), 1)
	gone := b.topic + "-gone"
	b.broker.CreateTopic(t, gone, 2, nil)
	w := b.start(b.options(), kgo.ConsumeTopics(b.topic, gone))
	b.produce(10)
	b.arrived()
	b.eventually("all are owned", func() bool { return value(w.metrics.LanesOwned) == 3 })
	_, err := b.admin.DeleteTopics(t.Context(), gone)
	require.NoError(t, err)
	b.eventually("they are on record as halted", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE state = 'halted'`) == 2 })
	var old []sink.LaneStatus
	all, err := sink.Lanes(t.Context(), b.pool)
	require.NoError(t, err)
	for _, l := range all {
		if l.Topic == gone {
			old = append(old, l)
		}
	}
	_, err = sink.AcceptTopic(t.Context(), b.pool, old, [16]byte{}, nil, op)
	require.NoError(t, err)
	b.eventually("the worker is ready", func() bool { return w.Ready() == nil && value(w.metrics.LanesHalted) == 0 })
	b.produce(10)
	b.arrived()
}
