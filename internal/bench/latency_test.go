package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
)

// TestLatencyAndRecovery runs both, small, as TestScenarios.
func TestLatencyAndRecovery(t *testing.T) {
	path := filepath.Join(t.TempDir(), "figures.json")
	o, err := parse([]string{"-scenarios", "latency,recovery", "-set", "AUDITSINK_KAFKA_SESSION_TIMEOUT=2s", "-flush-rows", "20", "-json", path})
	require.NoError(t, err)
	o.indexedEvents = 2000 // a hundred commits
	o.latency = latencyPlan{runs: 1, shares: []int{5, 10}, warmUp: time.Second, after: time.Second}
	o.recovery = recoveryPlan{lanes: 4, rate: 200, kills: 1, backlog: 5 * time.Second, before: time.Second}
	require.NoError(t, run(t.Context(), o))

	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(raw, &r))
	require.Len(t, r.Latencies, 1)
	require.Equal(t, allIndexes, r.Latencies[0].Variant)
	require.Greater(t, r.Latencies[0].Peak, 1.0)
	require.Len(t, r.Latencies[0].Loads, 2)
	for _, load := range r.Latencies[0].Loads {
		require.Len(t, load.Runs, 1)
		require.Equal(t, max(int(r.Latencies[0].Peak*float64(load.Share)/100), 1), load.Rate)
		l := load.Median
		require.Positive(t, l.Events)
		require.Positive(t, l.P50)
		require.True(t, l.P50 <= l.P99 && l.P99 <= l.P999 && l.P999 <= l.Max, l)
	}
	require.InDelta(t, 2, r.Recovery.Takeovers.SessionSeconds, 1e-9)
	require.Len(t, r.Recovery.Takeovers.Kills, 1)
	k := r.Recovery.Takeovers.Kills[0]
	require.Equal(t, 2, k.Lanes)
	require.Positive(t, k.NoticedSeconds)
	require.True(t, k.ClaimedSeconds > 0 && k.ClaimedSeconds <= k.StoredSeconds && k.StoredSeconds <= k.AllStoredSeconds, k)
	require.Len(t, r.Recovery.CatchUps, 1)
	c := r.Recovery.CatchUps[0]
	require.Greater(t, c.Events, int64(1000))
	require.Greater(t, c.PeakLag, c.NormalLag)
	require.Positive(t, c.CaughtUpSeconds)
}

// TestPeakUnknown: a rate that can't be told is an error, not an offer of next to nothing.
func TestPeakUnknown(t *testing.T) {
	o, err := parse([]string{"-scenarios", "latency", "-lanes", "1", "-indexed-events", "10"})
	require.NoError(t, err)
	require.ErrorContains(t, run(t.Context(), o), "measure the peak rate: 10 events are too few")
}

// TestPace: events carry the times when they were due, whenever the producer got to them.
func TestPace(t *testing.T) {
	b := &bench{kafka: testkit.Kafka(t)}
	topic := testkit.Name(t)
	producer, err := b.newTopic(t.Context(), topic, 1)
	require.NoError(t, err)
	defer producer.Close()
	const perSecond = 250 // two or three a tick
	const enough = 100
	begun, stop, paced := time.Now(), make(chan struct{}), make(chan error, 1)
	var events int64 // once paced has been received from
	go func() {
		var err error
		events, err = pace(t.Context(), producer, topic, perSecond, stop)
		paced <- err
	}()

	client, err := kgo.NewClient(kgo.SeedBrokers(b.kafka.Brokers()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	var times []time.Time
	for stopped := false; !stopped || int64(len(times)) < events; {
		if len(times) >= enough && !stopped {
			close(stop)
			require.NoError(t, <-paced)
			stopped = true
			continue
		}
		fetches := client.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			var e struct{ Timestamp time.Time }
			require.NoError(t, json.Unmarshal(r.Value, &e))
			times = append(times, e.Timestamp)
		})
	}
	require.Len(t, times, int(events))
	require.False(t, times[0].Before(begun.Add(time.Second/perSecond).Truncate(time.Millisecond)), "none is due at once")
	for i := range times {
		due := times[0].Add(time.Duration(i) * time.Second / perSecond)
		require.WithinDuration(t, due, times[i], time.Millisecond, i) // which is how exact a timestamp is
	}
}

// TestLatencies: from an event's timestamp to its commit, whoever stored it, of the events since a moment.
func TestLatencies(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	b := &bench{postgres: server}
	setting := func() (value string) {
		conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
		require.NoError(t, err)
		defer conn.Close(t.Context()) //nolint:errcheck // it has only read
		require.NoError(t, conn.QueryRow(t.Context(), `SHOW track_commit_timestamp`).Scan(&value))
		return value
	}
	require.NoError(t, b.withCommitTimes(t.Context(), func() error {
		require.Equal(t, "on", setting())
		return b.onDatabase(t.Context(), noIndex, func(db *database) error {
			since := time.Now().Add(-10 * time.Minute)
			_, err := db.latencies(t.Context(), since)
			require.ErrorContains(t, err, "no event")
			begun := time.Now()
			_, err = db.conn.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status)
				SELECT now() - make_interval(secs => n / 10.0), 'x', 'success' FROM generate_series(1, 1000) n UNION ALL SELECT now() - interval '11 minutes', 'x', 'success'`)
			require.NoError(t, err)
			within := inMillis(time.Since(begun))
			l, err := db.latencies(t.Context(), since)
			require.NoError(t, err)
			require.Equal(t, int64(1000), l.Events, "and not what came before")
			for _, figure := range []struct{ want, is float64 }{{50_000, l.P50}, {99_000, l.P99}, {99_900, l.P999}, {100_000, l.Max}, {100, l.BehindMillis}} {
				require.GreaterOrEqual(t, figure.is, figure.want)
				require.LessOrEqual(t, figure.is, figure.want+within)
			}
			return nil
		})
	}))
	require.Equal(t, "off", setting(), "for other scenarios it must be as it was")
}

func TestMedianLatencies(t *testing.T) {
	l := func(v float64) latencies {
		return latencies{Events: int64(v), P50: v + 1, P99: v + 2, P999: v + 3, Max: v + 4, BehindMillis: v + 5}
	}
	require.Equal(t, l(20), medianLatencies([]latencies{l(30), l(10), l(20)}))
}

// TestTakeover: a commit of the killed worker's that was under way is nobody's first row, and each lane counts once.
func TestTakeover(t *testing.T) {
	f := &takeoverFigures{Kills: []takeover{{NoticedSeconds: 9}}}
	k := &f.Kills[0]
	was, taken := map[int32]laneState{1: {epoch: 1, next: 10}, 2: {epoch: 4, next: 20}}, map[int32]bool{}
	for seconds, now := range []map[int32]laneState{
		{1: {epoch: 1, next: 15}, 2: {epoch: 4, next: 20}, 3: {epoch: 8, next: 99}},
		{1: {epoch: 2, next: 15}, 2: {epoch: 4, next: 20}},
		{1: {epoch: 2, next: 16}, 2: {epoch: 5, next: 20}},
		{1: {epoch: 2, next: 17}, 2: {epoch: 5, next: 20}},
		{1: {epoch: 2, next: 18}, 2: {epoch: 5, next: 25}},
	} {
		require.Less(t, len(taken), 2)
		k.see(float64(seconds+1), was, now, taken)
	}
	require.Len(t, taken, 2)
	require.Equal(t, takeover{NoticedSeconds: 9, ClaimedSeconds: 2, StoredSeconds: 3, AllStoredSeconds: 5}, *k)
	f.Kills = append(f.Kills, takeover{NoticedSeconds: 1, ClaimedSeconds: 8, StoredSeconds: 9, AllStoredSeconds: 15})
	f.summarize()
	require.Equal(t, takeover{NoticedSeconds: 5, ClaimedSeconds: 5, StoredSeconds: 6, AllStoredSeconds: 10}, f.Median)
	require.Equal(t, takeover{NoticedSeconds: 9, ClaimedSeconds: 8, StoredSeconds: 9, AllStoredSeconds: 15}, f.Longest)
}

func TestWorkerSeconds(t *testing.T) {
	b := &bench{options: options{settings: []string{"GOGC=50", "AUDITSINK_FLUSH_INTERVAL=200ms", "AUDITSINK_BUFFER_BYTES=1MiB"}}}
	for name, want := range map[string]float64{"FLUSH_INTERVAL": 0.2, "KAFKA_SESSION_TIMEOUT": 10} {
		seconds, err := b.workerSeconds(name, 10*time.Second)
		require.NoError(t, err)
		require.InDelta(t, want, seconds, 1e-9)
	}
	_, err := b.workerSeconds("BUFFER_BYTES", 0)
	require.ErrorContains(t, err, "BUFFER_BYTES")
}
