package query_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"

	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
	"auditsink/sink"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// bed is a database of rows that the sink stored.
type bed struct {
	*testing.T
	pool *postgres.Pool
}

func newBed(t *testing.T, version int, values ...string) *bed {
	return bedOn(t, testkit.Postgres(t, version), values...)
}

func bedOn(t *testing.T, url string, values ...string) *bed {
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	pool, err := postgres.Open(t.Context(), postgres.Options{URL: url, MaxConns: 4, Prepared: true})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = partitions.Ensure(t.Context(), pool.Pool, time.Now(), partitions.Schedule{Ahead: 1})
	require.NoError(t, err)
	b := &bed{t, pool}
	if len(values) == 0 {
		return b
	}
	const horizon = 2555 * 24 * time.Hour
	ensure := func(ctx context.Context, days []time.Time) ([]time.Time, error) {
		_, err := partitions.EnsureFor(ctx, pool.Pool, time.Now(), horizon, partitions.Schedule{}, days)
		return nil, err
	}
	s := sink.New(pool, 4, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, ensure, metrics.New("test", event.Reasons()), zaptest.NewLogger(t))
	id := [16]byte{1}
	require.NoError(t, s.Register(t.Context(), "events", id, "group", []sink.Start{{}}))
	claim, err := s.Claim(t.Context(), sink.Lane{Topic: "events", TopicID: id}, "group", "test")
	require.NoError(t, err)
	batch := sink.Batch{Claim: claim, To: int64(len(values)), LeaderEpoch: -1}
	for i, v := range values {
		batch.Records = append(batch.Records, event.Record{Offset: int64(i), Timestamp: time.Now().UnixMilli(), Value: []byte(v)})
	}
	stored, err := s.Append(t.Context(), &batch)
	require.NoError(t, err)
	require.Equal(t, sink.Stored{Rows: int64(len(values))}, stored)
	return b
}

func (b *bed) exec(sql string, args ...any) {
	b.Helper()
	_, err := b.pool.Exec(b.Context(), sql, args...)
	require.NoError(b, err, sql)
}

// verify returns the rows that differ, by ID.
func (b *bed) verify(readers int) (query.Verified, []query.Mismatch) {
	b.Helper()
	var found []query.Mismatch // found is called one at a time
	total, err := query.Verify(b.Context(), b.pool, readers, func(m query.Mismatch) error {
		found = append(found, m)
		return nil
	})
	require.NoError(b, err)
	require.EqualValues(b, len(found), total.Mismatches)
	slices.SortFunc(found, func(x, y query.Mismatch) int { return int(x.ID - y.ID) })
	return total, found
}

// stamp is a timestamp of the current month, which every partition plan holds.
func stamp(layout string) string { return time.Now().UTC().Format(layout) }

const (
	seconds   = "2006-01-02T15:04:05"
	canonical = seconds + ".000Z"
)

// full is an event with each hashed member.
func full(timestamp string) string {
	return fmt.Sprintf(`{"timestamp":%q,"action":"record.read","status":"success","principalId":"p|1","organizationId":"o\"1","targetResourceType":"Patient",
		"targetResourceId":"t\u20281","outcomeDescription":"fine\n<ok> 🩺","correlationId":"c"}`, timestamp)
}

func TestVerifyStored(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) {
			values := []string{
				full(stamp(canonical)),
				full(stamp(seconds) + ".000000Z"), full(stamp(seconds) + ".123456789Z"), full(stamp(seconds) + ".999999999Z"),
				full(stamp(seconds)), full(stamp("2006-01-02t15:04:05") + ".5z"), full(stamp(seconds) + "+00:00"),
				full(stamp(seconds) + "-00:00"), full(time.Now().In(time.FixedZone("", -9*3600-1800)).Format("2006-01-02T15:04:05.0-07:00")),
				`{"timestamp":"` + stamp(canonical) + `","action":"a","status":"attempt"}`,
				`{"timestamp":"` + stamp(canonical) + `","action":"a","status":"failure","principalId":"","organizationId":null,"outcomeDescription":""}`,
				full("2023-02-28T23:59:59.9999999Z"), full("2024-02-29T00:00:00.000Z"), full("2023-12-31T23:59:59-01:00"),
			}
			b := newBed(t, version, values...)
			for _, readers := range []int{1, 4} {
				total, found := b.verify(readers)
				require.Empty(t, found)
				require.Equal(t, query.Verified{Rows: int64(len(values))}, total)
			}
		})
	}
}

// TestVerifyFinds: each hashed column, altered by itself, shows, and only in its row.
func TestVerifyFinds(t *testing.T) {
	b := newBed(t, 15, full(stamp(canonical)), full(stamp(seconds)+".123456Z"), full(stamp(seconds)), full("2024-05-05T10:00:00.000Z"))
	const zulu, micros, zoneless, old = 0, 1, 2, 3 // offsets
	for _, c := range []struct {
		name, change string
		offset       int64
		fault        query.Fault
	}{
		{"action", `action = 'record.reaD'`, zulu, query.WrongHash},
		{"status", `status = 'failure'`, zulu, query.WrongHash},
		{"principal", `principal_id = 'p|2'`, zulu, query.WrongHash},
		{"principal removed", `principal_id = NULL`, zulu, query.WrongHash},
		{"organization", `organization_id = 'o"2'`, zulu, query.WrongHash},
		{"organization removed", `organization_id = NULL`, zulu, query.WrongHash},
		{"resource type", `target_resource_type = 'patient'`, zulu, query.WrongHash},
		{"resource id", `target_resource_id = target_resource_id || ' '`, zulu, query.WrongHash},
		{"outcome", `outcome_description = replace(outcome_description, '<', '＜')`, zulu, query.WrongHash},
		{"outcome removed", `outcome_description = NULL`, zulu, query.WrongHash},
		{"two columns swapped", `target_resource_id = target_resource_type, target_resource_type = target_resource_id`, zulu, query.WrongHash},
		{"timestamp", `timestamp = timestamp + interval '1 millisecond'`, zulu, query.WrongHash},
		{"timestamp by less than the canonical text shows", `timestamp = timestamp + interval '1 microsecond'`, zulu, query.WrongTimestamp},
		{"timestamp into another table partition", `timestamp = timestamp + interval '1 month'`, zulu, query.WrongHash},
		{"timestamp beside its text", `timestamp = timestamp + interval '1 hour'`, micros, query.WrongTimestamp},
		{"timestamp beside its text, by little", `timestamp = timestamp + interval '1 microsecond'`, micros, query.WrongTimestamp},
		{"timestamp beside a text without zone", `timestamp = timestamp - interval '1 second'`, zoneless, query.WrongTimestamp},
		{"timestamp text", `timestamp_text = replace(timestamp_text, 'Z', '+00:00')`, micros, query.WrongHash},
		{"timestamp text removed", `timestamp_text = NULL`, micros, query.WrongHash},
		{"timestamp text added", `timestamp_text = '2020-01-01T00:00:00Z'`, zulu, query.WrongHash},
		{"hash", `hash = repeat('0', 64)`, zulu, query.WrongHash},
		{"hash in capitals", `hash = upper(hash)`, zulu, query.WrongHash},
		{"hash removed", `hash = NULL`, zulu, query.WrongHash},
		{"hash empty", `hash = ''`, zulu, query.WrongHash},
		{"algorithm", `hash_algorithm = 'MD5'`, zulu, query.WrongAlgorithm},
		{"algorithm removed", `hash_algorithm = NULL`, zulu, query.WrongAlgorithm},
		{"of a month long past", `action = 'other'`, old, query.WrongHash},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bed{t, b.pool}
			b.exec(`CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM audit_log`)
			if c.name == "timestamp into another table partition" {
				_, err := partitions.Ensure(t.Context(), b.pool.Pool, time.Now(), partitions.Schedule{Ahead: 3})
				require.NoError(t, err)
			}
			b.exec(`UPDATE audit_log SET `+c.change+` WHERE lane_offset = $1`, c.offset)
			total, found := b.verify(2)
			require.Equal(t, query.Verified{Rows: 4, Mismatches: 1}, total)
			require.NotNil(t, found[0].LaneOffset)
			require.Equal(t, c.offset, *found[0].LaneOffset)
			require.Equal(t, c.fault, found[0].Fault)
			require.Len(t, found[0].Computed, 64)
			var id int64
			var partition string
			require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT id, tableoid::regclass::text FROM audit_log WHERE lane_offset = $1`, c.offset).Scan(&id, &partition))
			require.Equal(t, id, found[0].ID)
			require.Equal(t, partition, found[0].TablePartition)

			b.exec(`DELETE FROM audit_log`)
			b.exec(`INSERT INTO audit_log SELECT * FROM kept`)
			_, found = b.verify(2)
			require.Empty(t, found)
		})
	}
}

// TestVerifyReadsEachRowOnce: a table of several slices, a row a page so that it needn't hold gigabytes.
func TestVerifyReadsEachRowOnce(t *testing.T) {
	b := newBed(t, 15, full(stamp(canonical)))
	const rows, slice = 17_000, 8192
	var partition string
	require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT tableoid::regclass::text FROM audit_log`).Scan(&partition))
	b.exec(`DO $$ DECLARE i text; BEGIN FOR i IN SELECT indexname FROM pg_indexes WHERE tablename = 'audit_log' AND indexname <> 'audit_log_pkey' LOOP EXECUTE 'DROP INDEX ' || i; END LOOP; END $$`)
	b.exec(`ALTER TABLE ` + partition + ` SET (fillfactor = 10)`)
	b.exec(`INSERT INTO audit_log (timestamp, action, status, details, principal_id, organization_id, target_resource_type, target_resource_id, outcome_description, hash, hash_algorithm, lane_id, lane_offset)
		SELECT timestamp, action, status, jsonb_build_object('pad', substr(repeat(md5(n::text), 20), 1, 600)), principal_id, organization_id, target_resource_type, target_resource_id, outcome_description, hash, hash_algorithm, lane_id, n
		FROM audit_log, generate_series(1, $1::int) n WHERE lane_offset = 0`, rows)
	var pages int
	require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT pg_relation_size($1::regclass) / 8192`, partition).Scan(&pages))
	require.Greater(t, pages, 2*slice, "three slices")
	total, found := b.verify(4)
	require.Empty(t, found)
	require.EqualValues(t, rows+1, total.Rows)

	// Tampered on both sides of each border, at the ends and between.
	b.exec(`CREATE TABLE chosen AS SELECT id FROM audit_log WHERE ` + fmt.Sprintf(`(ctid::text::point)[0]::int IN (0, 1, 4000, %d, %d, %d, %d, %d)`, slice-1, slice, 2*slice-1, 2*slice, pages-1))
	b.exec(`UPDATE audit_log SET hash = repeat('f', 64) WHERE id IN (SELECT id FROM chosen)`)
	want := []int64{}
	list, err := b.pool.Query(t.Context(), `SELECT id FROM chosen ORDER BY id`)
	require.NoError(t, err)
	for list.Next() {
		var id int64
		require.NoError(t, list.Scan(&id))
		want = append(want, id)
	}
	require.NoError(t, list.Err())
	require.GreaterOrEqual(t, len(want), 8)
	total, found = b.verify(4)
	var got []int64
	for _, m := range found {
		got = append(got, m.ID)
	}
	require.Equal(t, want, got)
	require.EqualValues(t, rows+1, total.Rows)

	// An error of the caller's ends it all.
	enough := errors.New("enough")
	calls := 0
	_, err = query.Verify(t.Context(), b.pool, 4, func(query.Mismatch) error { calls++; return enough })
	require.ErrorIs(t, err, enough)
	require.LessOrEqual(t, calls, 4, "a reader that met its error goes no further")
}

func TestVerifyWithoutATable(t *testing.T) {
	pool, err := postgres.Open(t.Context(), postgres.Options{URL: testkit.Postgres(t, 15), MaxConns: 2})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = query.Verify(t.Context(), pool, 2, func(query.Mismatch) error { return nil })
	require.Equal(t, postgres.Fatal, postgres.Classify(err))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = query.Verify(ctx, newBed(t, 15).pool, 2, func(query.Mismatch) error { return nil })
	require.ErrorIs(t, err, context.Canceled)
	total, found := newBed(t, 18).verify(1)
	require.Zero(t, total)
	require.Empty(t, found)
}
