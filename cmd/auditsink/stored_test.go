package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

// recorded is the timestamp of the records that the corpus was made for.
var recorded = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// publishAt publishes values as they are, in order, on partition 0 of a topic, with a timestamp.
func publishAt(t *testing.T, broker *testkit.Broker, topic string, at time.Time, values [][]byte) {
	t.Helper()
	// The broker would refuse records much larger than the default, or dated more than an hour ahead.
	broker.CreateTopic(t, topic, 1, map[string]string{"max.message.bytes": "8388608", "message.timestamp.after.max.ms": "9223372036854775807"})
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchMaxBytes(4<<20))
	require.NoError(t, err)
	defer client.Close()
	for i, v := range values {
		r := &kgo.Record{Key: []byte(strconv.Itoa(i)), Value: v, Timestamp: at, Headers: []kgo.RecordHeader{{Key: "n", Value: []byte{0, byte(i)}}}}
		require.NoError(t, client.ProduceSync(t.Context(), r).FirstErr())
	}
}

// TestCorpus sends each record of the corpus, a tombstone among them, through a broker into tables.
func TestCorpus(t *testing.T) {
	text, err := os.ReadFile("../../internal/event/testdata/events.json")
	require.NoError(t, err)
	type record struct {
		Name, Expect, Reason string
		Value                []byte // null is a tombstone
	}
	var corpus []record
	require.NoError(t, json.Unmarshal(text, &corpus))
	require.Len(t, corpus, 52)
	// What the corpus leaves out: a record over the limit of a mebibyte, and one just within.
	const event = `{"timestamp":"2026-11-15T10:30:00.000Z","action":"a","status":"success","pad":"`
	const most = 1 << 20
	padded := func(size int) []byte { return []byte(event + strings.Repeat("x", size-len(event)-2) + `"}`) }
	corpus = append(corpus, record{Name: "too large", Expect: "quarantine", Reason: "too_large", Value: padded(most + 1)},
		record{Name: "as large as may be", Expect: "row", Value: padded(most)})
	var values [][]byte
	rows := 0
	for _, c := range corpus {
		values = append(values, c.Value)
		if c.Expect == "row" {
			rows++
		}
	}
	require.Nil(t, values[15], "a tombstone")
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) {
			broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, version), testkit.Name(t)
			publishAt(t, broker, topic, recorded, values)
			s := workerSettings(broker, topic, databaseURL)
			succeed(t, s, "migrate", "up")
			p := start(t, s, "run")
			eventually(t, "the position", func() bool {
				return number(t, databaseURL, `SELECT coalesce(sum(next_offset), 0) FROM audit_lane`) == int64(len(corpus))
			})
			conn, err := pgx.Connect(t.Context(), databaseURL)
			require.NoError(t, err)
			defer conn.Close(t.Context()) //nolint:errcheck // nothing was written
			for i, c := range corpus {
				if c.Expect == "row" {
					var n int
					require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM audit_log WHERE lane_offset = $1`, i).Scan(&n))
					require.Equal(t, 1, n, c.Name)
					continue
				}
				var reason, detail, state string
				var key, value []byte
				var headers string
				var at time.Time
				require.NoError(t, conn.QueryRow(t.Context(), `SELECT reason, detail, state, key, value, headers::text, record_timestamp FROM audit_quarantine WHERE lane_offset = $1`, i).
					Scan(&reason, &detail, &state, &key, &value, &headers, &at), c.Name)
				require.Equal(t, c.Reason, reason, c.Name)
				require.NotEmpty(t, detail, c.Name)
				require.Equal(t, "new", state)
				require.Equal(t, strconv.Itoa(i), string(key))
				require.True(t, bytes.Equal(c.Value, value), c.Name)
				require.Equal(t, c.Value == nil, value == nil, "%s: a tombstone is not an empty value", c.Name)
				require.JSONEq(t, fmt.Sprintf(`[["n", %q]]`, base64.StdEncoding.EncodeToString([]byte{0, byte(i)})), headers)
				require.True(t, at.Equal(recorded))
			}
			require.EqualValues(t, rows, number(t, databaseURL, `SELECT count(*) FROM audit_log`))
			require.EqualValues(t, len(corpus)-rows, number(t, databaseURL, `SELECT count(*) FROM audit_quarantine`))
			require.Equal(t, float64(rows), p.metric(t, "rows_inserted_total"))
			require.Equal(t, float64(len(corpus)-rows), p.metric(t, "quarantined_total"))
			require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_gap`))
			requireNoLag(t, broker, topic, 1)
			p.stop(t)
			require.Contains(t, succeed(t, s, "verify"), fmt.Sprintf("%d rows verified", rows))
			requireNoContent(t, p.errs.String())
		})
	}
}

// requireNoContent requires that a log holds nothing of the corpus's events.
func requireNoContent(t *testing.T, log string) {
	t.Helper()
	for _, content := range []string{"data.read", "2026-11-15", "pat-1", "yesterday"} {
		require.NotContains(t, log, content)
	}
}

// TestVectors sends each event of the golden file through a broker: the hash stored is the one producers compute. Then each again with its
// hash, and with its signature, which the worker checks.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile("../../hashing/testdata/event_hash.json")
	require.NoError(t, err)
	var vectors []struct {
		Event     []byte
		SHA256    string
		Signature string `json:"hmac_sha256_key_secret"`
	}
	require.NoError(t, json.Unmarshal(text, &vectors))
	require.Len(t, vectors, 120)
	var values [][]byte
	var hashes []string
	for _, v := range vectors {
		proven := `{"hash":"` + v.SHA256 + `","signature":"` + v.Signature + `",` + string(v.Event[1:])
		values = append(values, v.Event, []byte(proven))
		hashes = append(hashes, v.SHA256, v.SHA256)
	}
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 15), testkit.Name(t)
	publishAt(t, broker, topic, recorded, values)
	s := workerSettings(broker, topic, databaseURL).with(settings{"EVENT_SIGNATURE_KEY": "secret", "POSTGRES_PREPARED": "false"})
	succeed(t, s, "migrate", "up")
	p := start(t, s, "run")
	arrived(t, databaseURL, int64(len(values)))
	p.stop(t)
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(t.Context()) //nolint:errcheck // nothing was written
	rows, err := conn.Query(t.Context(), `SELECT hash FROM audit_log ORDER BY lane_offset`)
	require.NoError(t, err)
	stored, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, hashes, stored)
	require.Contains(t, succeed(t, s, "verify"), "240 rows verified")
}

// TestTampering: a changed row is found, named, and the exit code says so.
func TestTampering(t *testing.T) {
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 18), testkit.Name(t)
	broker.CreateTopic(t, topic, 2, nil)
	s := workerSettings(broker, topic, databaseURL)
	succeed(t, s, "migrate", "up")
	require.Contains(t, succeed(t, s, "verify"), "0 rows verified")
	p := start(t, s, "run")
	publish(t, broker, topic, 500, 7)
	arrived(t, databaseURL, 500)
	p.stop(t)
	require.Contains(t, succeed(t, s, "verify"), "500 rows verified")

	id := number(t, databaseURL, `SELECT id FROM audit_log ORDER BY id OFFSET 250 LIMIT 1`)
	lane := number(t, databaseURL, `SELECT lane_id FROM audit_log WHERE id = $1`, id)
	offset := number(t, databaseURL, `SELECT lane_offset FROM audit_log WHERE id = $1`, id)
	statement(t, databaseURL, `UPDATE audit_log SET principal_id = 'somebody else' WHERE id = $1`, id)
	code, out, errs := execute(t, s, "verify")
	require.Equal(t, 3, code)
	require.Regexp(t, fmt.Sprintf(`(?m)^row %d of audit_log_\d{4}_\d{2} \(timestamp \S+, lane %d offset %d\): hash differs; stored hash [0-9a-f]{64}, computed [0-9a-f]{64}$`, id, lane, offset), out)
	require.Contains(t, out, "500 rows verified")
	require.Contains(t, out, "1 differ")
	require.Equal(t, "auditsink: 1 of 500 rows do not prove\n", errs)
	require.NotContains(t, out, "somebody else")

	code, out, _ = execute(t, s, "verify", "--json")
	require.Equal(t, 3, code)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 2)
	var row struct {
		ID     int64
		LaneID int64  `json:"lane_id"`
		Offset int64  `json:"lane_offset"`
		Fault  string `json:"fault"`
	}
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &row))
	require.Equal(t, []any{id, lane, offset, "hash"}, []any{row.ID, row.LaneID, row.Offset, row.Fault})
	require.JSONEq(t, `{"rows":500,"mismatches":1}`, lines[1])

	statement(t, databaseURL, `UPDATE audit_log SET principal_id = 'somebody else' WHERE id % 2 = 0`)
	code, out, _ = execute(t, s, "verify", "--limit", "3")
	require.Equal(t, 3, code)
	require.Len(t, regexp.MustCompile(`(?m)^row `).FindAllString(out, -1), 3)
	require.Regexp(t, `2[45]\d differ`, out)
}

// TestCommands: what the commands print, for people and for programs.
func TestCommands(t *testing.T) {
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 15), testkit.Name(t)
	broker.CreateTopic(t, topic, 3, nil)
	s := workerSettings(broker, topic, databaseURL)

	// A status before anything is there.
	require.Regexp(t, `(?m)^1 +00001\S*\.sql +pending$`, succeed(t, s, "migrate", "status"))

	// Ten at once: replicas that are deployed together.
	var all []*process
	for range 10 {
		all = append(all, start(t, s, "migrate", "up"))
	}
	applied := 0
	for _, p := range all {
		require.Zero(t, p.wait(t), p.errs.String())
		require.Empty(t, p.errs.String())
		require.Contains(t, p.out.String(), fmt.Sprintf("schema version %d, ", migrations.Version()))
		applied += strings.Count(p.out.String(), "applied 0")
	}
	require.EqualValues(t, migrations.Version(), applied, "each migration once")
	require.EqualValues(t, 7, number(t, databaseURL, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_log'::regclass`), "this month and six ahead")
	require.Contains(t, succeed(t, s, "migrate", "up"), "0 migrations applied, 0 table partitions created")

	status := succeed(t, s, "migrate", "status")
	require.Regexp(t, `^VERSION +NAME +APPLIED\n1 +00001\S*\.sql +\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z\n`, status)
	require.NotContains(t, status, "pending")
	var known []migrations.Migration
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "migrate", "status", "--json")), &known))
	require.Len(t, known, int(migrations.Version()))
	require.WithinDuration(t, time.Now(), known[0].AppliedAt, time.Hour)

	require.Regexp(t, `^LANE +TOPIC +PARTITION +GROUP +STATE +NEXT OFFSET +EPOCH +OWNER +UPDATED\n$`, succeed(t, s, "lanes", "list"))
	require.JSONEq(t, `[]`, succeed(t, s, "lanes", "list", "--json"))
	p := start(t, s, "run")
	publish(t, broker, topic, 30, 1)
	arrived(t, databaseURL, 30)
	p.stop(t)
	require.Regexp(t, `(?m)^\d+ +`+topic+` +2 +`+topic+` +active +10 +1 +\S+/\d+ +\S+Z$`, succeed(t, s, "lanes", "list"))
	var lanes []struct {
		LaneID     int    `json:"lane_id"`
		Topic      string `json:"topic"`
		TopicID    string `json:"topic_id"`
		Partition  int    `json:"partition"`
		Group      string `json:"consumer_group"`
		Epoch      int    `json:"epoch"`
		Owner      string `json:"owner"`
		NextOffset int    `json:"next_offset"`
		State      string `json:"state"`
		UpdatedAt  string `json:"updated_at"`
	}
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "lanes", "list", "--json")), &lanes))
	require.Len(t, lanes, 3)
	for i, l := range lanes {
		require.Equal(t, []any{topic, i, topic, 10, "active", 1}, []any{l.Topic, l.Partition, l.Group, l.NextOffset, l.State, l.Epoch})
		require.Regexp(t, `^[0-9a-f-]{36}$`, l.TopicID)
	}

	require.Regexp(t, fmt.Sprintf(`^auditsink \S+ \(schema %d, go\S+, linux/\S+\)\n$`, migrations.Version()), succeed(t, nil, "version"))
	require.Contains(t, succeed(t, nil, "--help"), "Exit codes: 0 fine, 1 failed, 2 usage or configuration, 3 tampering found.")
	check := succeed(t, s.with(settings{
		"POSTGRES_URL": "postgres://u:" + password + "@h/d", "EVENT_SIGNATURE_KEY": password,
		"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": password,
	}), "config", "check")
	require.NotContains(t, check, password)
	require.Regexp(t, `(?m)^AUDITSINK_KAFKA_SASL_PASSWORD +\(set\)$`, check)
	require.Contains(t, succeed(t, nil, "config", "reference"), "AUDITSINK_KAFKA_BROKERS")
}
