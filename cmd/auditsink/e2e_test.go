package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/sample"
	"auditsink/internal/testkit"
)

// number is the answer of a query.
func number(t *testing.T, databaseURL, sql string, args ...any) (n int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // nothing was written
	require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&n), sql)
	return n
}

// events invents n events whose outcomes differ from seed to seed. A third have keys.
func events(n int, seed uint64) (keys, values [][]byte) {
	g := sample.New(seed)
	for i := range n {
		key, value := g.Next(time.Now())
		if i%3 != 0 {
			key = nil
		}
		keys, values = append(keys, key), append(values, value)
	}
	return keys, values
}

// publish publishes n events with the Go client, and waits until the broker has them.
func publish(t *testing.T, broker *testkit.Broker, topic string, n int, seed uint64) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	keys, values := events(n, seed)
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Key: keys[i], Value: values[i]}
	}
	require.NoError(t, client.ProduceSync(t.Context(), records...).FirstErr())
}

// kcat publishes events with librdkafka: one line each, those with a key as key, tab, value.
func kcat(t *testing.T, broker *testkit.Broker, topic string, keys, values [][]byte) {
	t.Helper()
	var lines bytes.Buffer
	for i := range values {
		if keys[i] != nil {
			lines.Write(keys[i])
			lines.WriteByte('\t')
		}
		lines.Write(values[i])
		lines.WriteByte('\n')
	}
	// Without the pause for which it sticks to a partition, few events would fill few partitions.
	cmd := exec.CommandContext(t.Context(), "kcat", "-P", "-b", broker.Brokers()[0], "-t", topic, "-K", `\t`, "-X", "sticky.partitioning.linger.ms=0")
	cmd.Stdin = &lines
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s (Debian's package kcat)", out)
}

// arrived waits for n rows, and requires that each offset is there once and that none is beyond the positions.
func arrived(t *testing.T, databaseURL string, n int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d rows", n), func() bool { return number(t, databaseURL, `SELECT count(*) FROM audit_log`) >= n })
	require.Equal(t, n, number(t, databaseURL, `SELECT count(*) FROM audit_log`), "rows")
	require.Equal(t, n, number(t, databaseURL, `SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log`), "offsets")
	require.Equal(t, n, number(t, databaseURL, `SELECT sum(next_offset) FROM audit_lane`), "positions")
	require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_log l LEFT JOIN audit_lane a USING (lane_id)
		WHERE a.lane_id IS NULL OR lane_offset < 0 OR lane_offset >= next_offset`), "rows beyond a position")
	require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_quarantine`), "quarantined")
}

// requireThese requires that the rows are these events and no others, by the correlation ID that each event has of its own.
func requireThese(t *testing.T, databaseURL string, values [][]byte) {
	t.Helper()
	ids := make([]string, len(values))
	for i, v := range values {
		var e struct{ CorrelationID string }
		require.NoError(t, json.Unmarshal(v, &e))
		require.NotEmpty(t, e.CorrelationID)
		ids[i] = e.CorrelationID
	}
	slices.Sort(ids)
	sum := md5.Sum([]byte(strings.Join(ids, ",")))
	require.Equal(t, hex.EncodeToString(sum[:]),
		value(t, databaseURL, `SELECT md5(string_agg(correlation_id, ',' ORDER BY correlation_id COLLATE "C")) FROM audit_log`))
}

// requireNoLag requires that Kafka's own tool sees the group at the end of each partition.
func requireNoLag(t *testing.T, broker *testkit.Broker, group string, partitions int) {
	t.Helper()
	const groupColumn, partitionColumn, lagColumn = 0, 2, 5
	var out string
	eventually(t, "LAG 0", func() bool { // offsets are committed a moment after the rows
		var err error
		out, err = broker.Tool(t.Context(), "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
			"--bootstrap-server", broker.Brokers()[0], "--describe", "--group", group)
		require.NoError(t, err)
		lags := map[string]string{}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > lagColumn && f[groupColumn] == group {
				lags[f[partitionColumn]] = f[lagColumn]
			}
		}
		for p := range partitions {
			if lags[strconv.Itoa(p)] != "0" {
				return false
			}
		}
		return len(lags) == partitions
	})
	t.Log(out)
}

// TestEndToEnd: what librdkafka published is in the table once, also what was published while Postgres was away.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	const first, second, lanes = 100_000, 5_000, 8
	broker := testkit.Kafka(t)
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) {
			server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: version})
			databaseURL, err := server.CreateDatabase(t.Context())
			require.NoError(t, err)
			topic := testkit.Name(t)
			broker.CreateTopic(t, topic, lanes, nil)
			s := workerSettings(broker, topic, databaseURL).with(settings{"FLUSH_INTERVAL": "500ms", "POOL_MAX_CONNS": "4"})
			succeed(t, s, "migrate", "up")
			p := start(t, s, "run")
			keys, values := events(first, uint64(version))
			kcat(t, broker, topic, keys, values)
			arrived(t, databaseURL, first)
			requireThese(t, databaseURL, values)
			require.EqualValues(t, lanes, number(t, databaseURL, `SELECT count(DISTINCT lane_id) FROM audit_log`))
			require.Equal(t, float64(first), p.metric(t, "rows_inserted_total"))
			require.Equal(t, float64(lanes), p.metric(t, "lanes_owned"))
			sessions := number(t, databaseURL, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'auditsink'`)
			require.LessOrEqual(t, sessions, int64(4+2), "AUDITSINK_POOL_MAX_CONNS is of the whole worker, besides the lease and upkeep")
			require.Contains(t, succeed(t, s, "verify"), fmt.Sprintf("%d rows verified", first))
			requireNoLag(t, broker, topic, lanes)
			eventually(t, "no lag", func() bool { return p.metric(t, "consumer_lag_records") == 0 })
			status, _ := p.get(t, "/readyz")
			require.Equal(t, 200, status)

			require.NoError(t, server.Stop())
			more, moreValues := events(second, uint64(version)+1000)
			kcat(t, broker, topic, more, moreValues)
			eventually(t, "the lag grows", func() bool { return p.metric(t, "consumer_lag_records") == second })
			eventually(t, "it isn't ready", func() bool { status, _ := p.get(t, "/readyz"); return status == 503 })
			require.Equal(t, float64(first), p.metric(t, "rows_inserted_total"))
			require.Positive(t, p.metric(t, "consumer_lag_seconds"))
			require.NoError(t, server.Restart(t.Context()))
			arrived(t, databaseURL, first+second)
			eventually(t, "it is ready", func() bool { status, _ := p.get(t, "/readyz"); return status == 200 })

			// SIGTERM with events under way: what was fetched is stored, and the rest by the next worker.
			publish(t, broker, topic, second, uint64(version)+2000)
			p.stop(t)
			rows := number(t, databaseURL, `SELECT count(*) FROM audit_log`)
			require.Equal(t, rows, number(t, databaseURL, `SELECT sum(next_offset) FROM audit_lane`))
			next := start(t, s, "run")
			arrived(t, databaseURL, first+2*second)
			requireNoLag(t, broker, topic, lanes)
			next.stop(t)
		})
	}
}

// TestStopStores: on SIGTERM all that is buffered is stored before the worker ends.
func TestStopStores(t *testing.T) {
	t.Parallel()
	const n = 1000
	broker := testkit.Kafka(t)
	databaseURL := testkit.Postgres(t, 18)
	topic := testkit.Name(t)
	broker.CreateTopic(t, topic, 3, nil)
	s := workerSettings(broker, topic, databaseURL).with(settings{"FLUSH_INTERVAL": "1h", "FLUSH_ROWS": "100000"})
	succeed(t, s, "migrate", "up")
	p := start(t, s, "run")
	publish(t, broker, topic, n, 1)
	eventually(t, "all are buffered", func() bool { return p.metric(t, "records_consumed_total") == n })
	require.Positive(t, p.metric(t, "buffered_bytes"))
	require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_log`))
	p.stop(t)
	arrived(t, databaseURL, n)
	requireNoLag(t, broker, topic, 3)
}
