package main

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
)

// TestKill: of five workers three are killed in the middle of their work and one is frozen, and each event is stored once. The frozen one comes
// back when another has its lanes already, with batches in its memory, and must store none of them.
func TestKill(t *testing.T) {
	t.Parallel() // most of it waits until Kafka gives the dead up
	const victims, lanes, each = 4, 10, 6000
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 18), testkit.Name(t)
	broker.CreateTopic(t, topic, lanes, nil)
	// Small batches, so that the end of each worker falls into the middle of something.
	s := workerSettings(broker, topic, databaseURL).with(settings{"FLUSH_ROWS": "50", "FLUSH_INTERVAL": "20ms", "POOL_MAX_CONNS": "4"})
	succeed(t, s, "migrate", "up")
	steady := start(t, s, "run")
	var doomed []*process
	for range victims {
		doomed = append(doomed, start(t, s, "run"))
	}
	owned := func(p *process) float64 { return p.metric(t, "lanes_owned") }
	eventually(t, "all have their lanes", func() bool {
		total := owned(steady)
		for _, p := range doomed {
			if owned(p) != lanes/(victims+1) {
				return false
			}
			total += owned(p)
		}
		return total == lanes
	})

	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	var produced [][]byte
	produce := func(seed uint64) {
		_, values := events(each, seed)
		for _, v := range values {
			client.Produce(t.Context(), &kgo.Record{Value: v}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("produce: %v", err)
				}
			})
		}
		produced = append(produced, values...)
	}
	for i, p := range doomed {
		produce(uint64(i) + 100)
		// At some moment of its work on these.
		stored := fmt.Sprintf(`SELECT coalesce(sum(next_offset), 0) FROM audit_lane WHERE owner LIKE '%%/%d'`, p.cmd.Process.Pid)
		least := number(t, databaseURL, stored) + 1 + rand.Int64N(each/lanes)
		eventually(t, "it has stored some", func() bool { return number(t, databaseURL, stored) >= least })
		if i == 0 {
			require.NoError(t, p.cmd.Process.Signal(syscall.SIGSTOP))
		} else {
			p.kill()
		}
	}
	require.NoError(t, client.Flush(t.Context()))
	require.Less(t, number(t, databaseURL, `SELECT count(*) FROM audit_log`), int64(len(produced)), "they were stopped in the middle")
	arrived(t, databaseURL, int64(len(produced)))

	frozen := doomed[0]
	require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGCONT))
	produce(200)
	require.NoError(t, client.Flush(t.Context()))
	arrived(t, databaseURL, int64(len(produced)))
	eventually(t, "the frozen one takes part again", func() bool { return owned(frozen) == lanes/2 && owned(steady) == lanes/2 })
	produce(201)
	require.NoError(t, client.Flush(t.Context()))
	arrived(t, databaseURL, int64(len(produced)))
	requireThese(t, databaseURL, produced)
	requireNoLag(t, broker, topic, lanes)
	frozen.stop(t)
	steady.stop(t)
	require.Contains(t, succeed(t, s, "verify"), fmt.Sprintf("%d rows verified", len(produced)))
}
