package fleet_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"auditsink/internal/fleet"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

const (
	// patience is how long a test waits for what must come: far more than it takes.
	patience = time.Minute
	// ample is a limit of a round trip that no test reaches.
	ample = 10 * time.Second
)

func TestMain(m *testing.M) { testkit.Main(m) }

func connect(t *testing.T, address string, o redis.Options) *redis.Client {
	t.Helper()
	o.Addr, o.MaxRetries, o.ContextTimeoutEnabled = address, -1, true
	client := redis.NewClient(&o)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// eventually waits until a condition holds, for as long as a test may.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testkit.Eventually(t, patience, what, cond)
}

// some are figures with something in each field.
func some(instance string) fleet.Figures {
	position := int64(7)
	at := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	return fleet.Figures{
		Format: 1, Instance: instance, Owner: "host/1", Database: "db:5432/audit", Group: "g", Version: "v1", Started: at, At: at.Add(time.Hour), HTTPAddr: "127.0.0.1:9464",
		Leader: true, LeaderSince: at.Add(time.Minute), NotReady: "lane events/1: its topic is gone", LanesOwned: 2, LanesHalted: 1, LagRecords: 9, LagSeconds: 1.5,
		Lanes: []fleet.Lane{
			{Topic: "events", Partition: 0, Position: &position, Lag: &fleet.Lag{Records: 9, Seconds: 1.5}},
			{Topic: "events", Partition: 1, Halted: "its topic is gone"},
		},
		RecordsPerSecond: 10.5, RowsPerSecond: 9.5, FlushP95: 0.25, BufferedBytes: 1 << 20, MemoryBytes: 1 << 26, Alerts: []string{"lane_halted"},
		Health: metrics.Warning, Components: map[string]metrics.Status{"partitions": metrics.Healthy, "cache": metrics.Warning},
	}
}

func read(t *testing.T, f *fleet.Fleet) fleet.View {
	t.Helper()
	v, err := f.Read(t.Context())
	require.NoError(t, err)
	return v
}

func instances(v fleet.View) []string {
	names := []string{}
	for _, f := range v.Replicas {
		names = append(names, f.Instance)
	}
	return names
}

func instance(n int) string { return fmt.Sprintf("host/%d/ABCDEFGH", n) }
