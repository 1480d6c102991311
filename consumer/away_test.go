package consumer

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap/zaptest"

	"auditsink/internal/event"
	"auditsink/metrics"
	"auditsink/sink"
)

// TestOneBrokerAway: the lanes that it leads are not taken for deleted, however long that lasts.
func TestOneBrokerAway(t *testing.T) {
	SetGonePatience(t, 0)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(4, "t"))
	require.NoError(t, err)
	defer cluster.Close()
	addrs := cluster.ListenAddrs()
	var away atomic.Bool
	client, err := kgo.NewClient(kgo.SeedBrokers(addrs[0]), kgo.MetadataMinAge(10*time.Millisecond), kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		if away.Load() && host == addrs[1] {
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}
		return (&net.Dialer{}).DialContext(ctx, network, host)
	}))
	require.NoError(t, err)
	defer client.Close()
	c := &member{
		client: client, admin: kadm.NewClient(client), log: zaptest.NewLogger(t), metrics: metrics.New("test", event.Reasons()),
		lanes: map[laneKey]*lane{}, failed: make(chan error, 1),
	}
	require.NoError(t, cluster.MoveTopicPartition("t", 3, 1)) // leaders are drawn by lot
	for p := range int32(4) {
		l := newTestLane(wide)
		l.id = sink.Lane{Topic: "t", Partition: p}
		c.lanes[laneKey{"t", p}] = l
	}
	away.Store(true)
	for range 2 {
		c.measureLag(t.Context())
	}
	for _, l := range c.lanes {
		require.False(t, l.isHalted(), l.reason())
	}

	// But those of a topic that is no more are.
	away.Store(false)
	_, err = c.admin.DeleteTopic(t.Context(), "t")
	require.NoError(t, err)
	for _, l := range c.lanes {
		require.Eventually(t, func() bool {
			c.measureLag(t.Context())
			return l.isHalted()
		}, time.Minute, 10*time.Millisecond)
	}
}
