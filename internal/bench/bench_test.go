package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/convert"
	"auditsink/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// TestRun is a whole run, of few events: its figures mean nothing, but every event must be there once.
func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "figures.json")
	o, err := parse([]string{"-events", "3001", "-indexed-events", "2000", "-lanes", "3", "-rounds", "2", "-json", path})
	require.NoError(t, err)
	require.NoError(t, run(t.Context(), o))

	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(raw, &r))
	require.Len(t, r.Runs, 4)
	require.Len(t, r.Medians, 2)
	for _, f := range r.Runs {
		require.Len(t, f.Ceilings, 2)
		require.Positive(t, f.Ceiling.Whole)
		require.Positive(t, f.CPUSeconds)
		require.Greater(t, f.PeakMB, 5.0)
	}
	require.Equal(t, 3001, r.Runs[0].Events)
	require.Equal(t, 2000, r.Runs[2].Events)
}

// TestScenarios runs the others, small: none fails, so each event was one row.
func TestScenarios(t *testing.T) {
	path := filepath.Join(t.TempDir(), "figures.json")
	o, err := parse([]string{
		"-scenarios", "backlog,outage,scale,convert,reads,compare", "-backlog-bytes", "3000000", "-backlog-codecs", "snappy,zstd", "-json", path,
		"-variants", "all", "-indexed-events", "5000", "-rounds", "1", "-debezium-set", "batch.size=500", "-debezium-jvm", "-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
	})
	require.NoError(t, err)
	o.outage = outagePlan{lanes: 2, rate: 200, before: time.Second, down: time.Second, after: time.Second}
	o.scale = scalePlan{lanes: 4, rate: 200, workers: []int{1, 3, 2}, each: 5 * time.Second}
	o.convert = convertPlan{rows: 5000, months: 5, rate: 100, writers: 2, before: time.Second, after: time.Second}
	o.reads = readsPlan{rows: 12000, months: 12, cold: 1, warm: 3}
	require.NoError(t, run(t.Context(), o))

	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(raw, &r))
	require.Empty(t, r.Runs)
	require.Len(t, r.Compared, 1) // and Debezium's rows hold the same as ours
	require.Equal(t, r.Compared[0].Debezium, r.ComparedMedians[0].Debezium)
	d := r.Compared[0].Debezium
	require.Positive(t, d.Rates.Whole)
	require.Positive(t, d.Ratio.Whole)
	require.Greater(t, d.CPUSeconds, d.BusySeconds, "a JVM's start is no part of it")
	require.Greater(t, d.PeakMB, 100.0)
	require.Len(t, r.Reads.Pages, len(pageFilters))
	for _, p := range r.Reads.Pages {
		require.Positive(t, p.Cold.Median, p.Filter)
		require.Positive(t, p.Cached.Median, p.Filter)
	}
	require.Equal(t, 5, r.Convert.Months)
	require.GreaterOrEqual(t, r.Convert.Rows, int64(5000))
	require.Equal(t, r.Convert.Writes, r.Convert.Latencies[0].Writes)
	require.Positive(t, r.Convert.SwapMillis)
	require.Len(t, r.Backlogs, 2)
	for i, codec := range []string{"snappy", "zstd"} {
		b := r.Backlogs[i]
		require.Equal(t, codec, b.Codec)
		require.GreaterOrEqual(t, b.Bytes, int64(3_000_000))
		require.Positive(t, b.LogBytes)
		require.Less(t, b.LogBytes, b.Bytes)
		require.Greater(t, b.PeakMiB, 5.0)
	}
	require.Positive(t, r.Outage.Events)
	require.Positive(t, r.Outage.PeakLag)
	require.Positive(t, r.Outage.ReadyAgainSeconds)
	require.GreaterOrEqual(t, r.Outage.DownSeconds, 1.0)
	require.Greater(t, r.Outage.PeakMiB, 5.0)
	require.Positive(t, r.Scale.Events)
	require.Greater(t, r.Scale.PeakMiB, 5.0)
	require.Len(t, r.Scale.Phases, 3)
	for i, p := range r.Scale.Phases {
		require.Equal(t, []int{0, 1, 3, 2}[i], p.From)
		require.Positive(t, p.LongestSeconds)
		require.LessOrEqual(t, p.MedianSeconds, p.LongestSeconds)
	}
}

// TestConvertCompares: a row that is another, or missing, is found.
func TestConvertCompares(t *testing.T) {
	url := testkit.Postgres(t, 18)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // the database goes
	b := &bench{options: options{convert: convertPlan{rows: 1000, months: 4}}}
	require.NoError(t, b.fillReplaced(t.Context(), conn))
	_, err = convert.Run(t.Context(), convert.Options{URL: url, Ahead: 1, Batch: 100})
	require.NoError(t, err)
	f := &convertFigures{}
	require.NoError(t, f.compare(t.Context(), conn, 1000))
	for _, plant := range []string{
		`UPDATE audit_log SET outcome_description = outcome_description || '.' WHERE id = 500`,
		`UPDATE audit_log SET outcome_description = NULL WHERE id = 500`,
		`DELETE FROM audit_log WHERE id = 500`,
	} {
		_, err = conn.Exec(t.Context(), plant)
		require.NoError(t, err)
		require.ErrorContains(t, f.compare(t.Context(), conn, 1000), "1 months differ", plant)
	}
	_, err = conn.Exec(t.Context(), `DELETE FROM audit_replaced.audit_log WHERE id = 500`)
	require.NoError(t, err)
	require.ErrorContains(t, f.compare(t.Context(), conn, 1000), "999 rows")
}

// TestDebeziumVerified: a row of Debezium's that is missing, too many or another is found. Debezium itself is in TestScenarios.
func TestDebeziumVerified(t *testing.T) {
	const events = 200
	ctx := t.Context()
	b := &bench{options: options{lanes: 2}, kafka: testkit.Kafka(t), postgres: testkit.PostgresServerFor(t, 18)}
	l, err := b.preload(ctx, testkit.Name(t), events)
	require.NoError(t, err)
	require.NoError(t, b.onDatabase(ctx, noIndex, func(db *database) error {
		rows, err := db.inserted(ctx, events)
		require.NoError(t, err)
		require.Zero(t, rows)
		_, err = copyAll(ctx, db, l, 2)
		require.NoError(t, err)
		ours, err := db.digest(ctx)
		require.NoError(t, err)
		require.NoError(t, db.verifyDebezium(ctx, events, ours))
		require.NoError(t, db.verifyDebezium(ctx, events, digest{}))

		// All rows of another session are inserted, but not committed.
		other, err := pgx.Connect(ctx, db.url)
		require.NoError(t, err)
		defer other.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the database goes
		rows, err = db.inserted(ctx, events)
		require.NoError(t, err)
		require.EqualValues(t, events, rows)
		tx, err := other.Begin(ctx)
		require.NoError(t, err)
		_, err = tx.Exec(ctx, `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'x', 'success')`)
		require.NoError(t, err)
		rows, err = db.inserted(ctx, events+1)
		require.NoError(t, err)
		require.EqualValues(t, events, rows)
		require.NoError(t, tx.Rollback(ctx))
		rows, err = db.inserted(ctx, events+1)
		require.NoError(t, err)
		require.EqualValues(t, events+1, rows)

		for plant, want := range map[string]string{
			`UPDATE audit_log SET timestamp = timestamp + interval '1 microsecond' WHERE lane_offset = 7 AND lane_id = 1`: "something else",
			`UPDATE audit_log SET outcome_description = '' WHERE lane_offset = 7 AND lane_id = 1`:                         "something else",
			`UPDATE audit_log SET ttl = principal_id, principal_id = NULL WHERE lane_offset = 7 AND lane_id = 1`:          "something else",
			`DELETE FROM audit_log WHERE lane_offset = 7 AND lane_id = 1`:                                                 "199 rows",
			`INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'x', 'success')`:                            "201 rows",
		} {
			tx, err := db.conn.Begin(ctx)
			require.NoError(t, err)
			_, err = tx.Exec(ctx, plant)
			require.NoError(t, err)
			require.ErrorContains(t, db.verifyDebezium(ctx, events, ours), want, plant)
			require.NoError(t, tx.Rollback(ctx))
		}
		return nil
	}))
}

func TestStandstills(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	s := standstills{}
	s.see(at(0), map[int32]int64{1: 0, 2: 7})
	require.False(t, s.allMoved())
	s.see(at(2), map[int32]int64{1: 10, 2: 7})
	require.False(t, s.allMoved(), "lane 2 has not")
	s.see(at(3), map[int32]int64{1: 20, 2: 8})
	require.True(t, s.allMoved())
	require.Equal(t, []time.Duration{2 * time.Second, 3 * time.Second}, s.cut(at(4)))
	s.see(at(5), map[int32]int64{1: 20, 2: 9})
	require.Equal(t, []time.Duration{2 * time.Second, 4 * time.Second}, s.cut(at(7)), "lane 1 has not moved since 3")
	s.see(at(9), map[int32]int64{1: 21, 2: 9})
	require.Equal(t, []time.Duration{4 * time.Second, 6 * time.Second}, s.cut(at(9)), "a standstill over a cut counts whole after it")
}

// TestCeilingRows holds the rows of the ceiling against what the columns must hold, and their indexes against the variants.
func TestCeilingRows(t *testing.T) {
	const events = 500
	ctx := t.Context()
	b := &bench{
		options: options{lanes: 2}, kafka: testkit.Kafka(t), postgres: testkit.PostgresServerFor(t, 18),
	}
	l, err := b.preload(ctx, testkit.Name(t), events)
	require.NoError(t, err)
	for name, wanted := range map[string]int{"none": 0, "all": 17, "lean": 7, "deferred": 2} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, b.onDatabase(ctx, name, func(db *database) error {
				_, err := copyAll(ctx, db, l, 2)
				require.NoError(t, err)
				require.NoError(t, db.verify(ctx, events))
				require.ErrorContains(t, db.verify(ctx, events+1), "500 rows")

				var indexes, proven, lanes int
				require.NoError(t, db.conn.QueryRow(ctx, `SELECT count(*) FROM pg_index
					WHERE indrelid = (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_log'::regclass LIMIT 1)`).Scan(&indexes))
				require.Equal(t, wanted, indexes)
				require.NoError(t, db.conn.QueryRow(ctx, `SELECT count(*), count(DISTINCT lane_id) FROM audit_log
					WHERE hash ~ '^[0-9a-f]{64}$' AND hash_algorithm = 'SHA-256' AND action <> '' AND status <> '' AND details ? 'sessionContext'
					AND timestamp BETWEEN now() - interval '1 minute' AND now() AND lane_offset < 250`).Scan(&proven, &lanes))
				require.Equal(t, events, proven)
				require.Equal(t, 2, lanes)

				_, err = db.conn.Exec(ctx, `INSERT INTO audit_log (timestamp, action, status, lane_id, lane_offset) VALUES (now(), 'x', 'success', 1, 0)`)
				require.NoError(t, err)
				require.Error(t, db.verify(ctx, events), "an event stored twice")
				require.Error(t, db.verify(ctx, events+1), "an event missing and another stored twice")
				return nil
			}))
		})
	}
}

func TestParse(t *testing.T) {
	o, err := parse(nil)
	require.NoError(t, err)
	require.Equal(t, []string{"none", "all"}, o.variants)
	require.Equal(t, 1_000_000, o.events)
	require.Equal(t, []string{"throughput"}, o.scenarios)
	require.Equal(t, []string{"all", "lean", "deferred"}, o.growth.variants)
	require.Equal(t, []string{"none", "all"}, o.curves.variants)
	require.Equal(t, []int{4, 16, 64, 256}, o.curves.lanes)
	require.EqualValues(t, 2_000_000_000, o.backlog.bytes)
	require.Equal(t, []string{"all"}, o.ingestVariants)
	require.Equal(t, 5, o.latency.runs)
	require.Equal(t, []int{25, 50, 90}, o.latency.shares)
	require.Equal(t, time.Hour, o.recovery.backlog)
	o, err = parse([]string{"-variants", "none"})
	require.NoError(t, err)
	require.Equal(t, []string{"none"}, o.ingestVariants)
	require.Equal(t, []string{"snappy", "none", "zstd"}, o.backlog.codecs)
	o, err = parse([]string{"-variants", "all", "-set", "A=1", "-set", "B=x=y"})
	require.NoError(t, err)
	require.Equal(t, []string{"all"}, o.variants)
	require.Equal(t, []string{"all"}, o.growth.variants)
	require.Equal(t, []string{"all"}, o.curves.variants)
	require.Equal(t, []string{"A=1", "B=x=y"}, o.settings)
	o, err = parse([]string{"-scenarios", "compare", "-debezium-set", "batch.size=10", "-debezium-set", "a=b=c", "-postgres-set", "max_wal_size=16GB"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"batch.size": "10", "a": "b=c"}, o.debeziumSettings)
	require.Equal(t, map[string]string{"max_wal_size": "16GB"}, o.serverSettings)
	require.Equal(t, "16GB", (&bench{options: o}).postgresSettings()["max_wal_size"])
	require.Equal(t, debeziumJVM, o.debeziumJVM)
	_, err = parse([]string{"-h"})
	require.ErrorIs(t, err, flag.ErrHelp)
	for _, args := range [][]string{
		{"-variants", ""},
		{"-variants", "some"},
		{"-set", "A"},
		{"-debezium-set", "A"},
		{"-rounds", "0"},
		{"-lanes", "0"},
		{"-events", "39"},
		{"more"},
		{"-no"},
		{"-scenarios", ""},
		{"-scenarios", "all"},
		{"-backlog-codecs", "gzip"},
		{"-backlog-bytes", "0"},
		{"-latency-runs", "0"},
		{"-latency-for", "0s"},
		{"-latency-peak", "-1"},
		{"-latency-warmup", "-1s"},
		{"-recovery-kills", "0"},
		{"-recovery-rate", "0"},
		{"-recovery-backlog", "0s"},
		{"-connections", "0"},
		{"-growth-slice", "39"},
		{"-growth-events", "39"},
		{"-curve-lanes", "4,"},
		{"-curve-partitions", "0"},
		{"-scenarios", "workers", "-curve-workers", "1,5"},
		{"-draw", "figures.json"},
	} {
		_, err := parse(args)
		require.Error(t, err, args)
	}
}

// TestConnections: ceiling, workers and Debezium share out the same number of connections.
func TestConnections(t *testing.T) {
	b := &bench{options: options{connections: 3, copyConns: 4}}
	require.Equal(t, "3", b.debeziumTuned()["tasks.max"])
	b.debeziumSettings = map[string]string{"tasks.max": "1"}
	require.Equal(t, "1", b.debeziumTuned()["tasks.max"])
	for workers, each := range map[int]string{1: "4", 2: "2", 3: "1", 8: "1"} {
		require.Equal(t, "AUDITSINK_COPY_CONNS="+each, b.copies(workers))
	}
}

// TestWarmCeiling: the first measurement of a new server's ceiling is done twice, and no other.
func TestWarmCeiling(t *testing.T) {
	b := &bench{options: options{lanes: 2}, kafka: testkit.Kafka(t), postgres: testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18, Settings: map[string]string{"autovacuum": "off"}})}
	l, err := b.preload(t.Context(), testkit.Name(t), 500)
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), b.postgres.URL("postgres"))
	require.NoError(t, err)
	defer conn.Close(t.Context()) //nolint:errcheck // it has only read
	transactions := func() (begun int64) {
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&begun))
		return begun
	}
	var took []int64
	for range 3 {
		before := transactions()
		_, err := b.ceiling(t.Context(), l, noIndex, 2)
		require.NoError(t, err)
		took = append(took, transactions()-before)
	}
	require.Greater(t, took[0], took[1]*3/2)
	require.Less(t, took[2], took[1]*3/2)
}

func TestRate(t *testing.T) {
	begin := time.Unix(0, 0)
	at := func(seconds int, stored int64) point {
		return point{begin.Add(time.Duration(seconds) * time.Second), stored}
	}
	progress := []point{at(0, 0), at(5, 100), at(6, 150), at(10, 1100)}
	require.InDelta(t, 200, rate(progress, 1), 1e-9)
	require.InDelta(t, 237.5, rate(progress, 150), 1e-9)
	require.InDelta(t, 237.5, rate(progress, 101), 1e-9)
	require.Zero(t, rate(progress, 151), "nothing to measure between the last two points")
}

func TestRatesOf(t *testing.T) {
	at := func(seconds, stored int64) point { return point{time.Unix(seconds, 0), stored} }
	progress := []point{at(0, 0), at(5, 100), at(6, 300), at(10, 1100)}
	require.Equal(t, rates{Whole: 200, Steady: 200}, ratesOf(progress, 1, 1100))
	require.Equal(t, rates{Whole: 110, Steady: 200}, ratesOf(progress, 0, 1100))
	require.Equal(t, rates{Whole: 110, Steady: 200}, ratesOf(progress, 0, 1500))
}

func TestMedians(t *testing.T) {
	f := func(variant string, round int, v float64) figures {
		return figures{
			Variant: variant, Round: round, Ceilings: []rates{{v, 2 * v}, {3 * v, 4 * v}}, Ceiling: rates{v, v + 1}, Worker: rates{v + 2, v + 3},
			Ratio: rates{v + 4, v + 5}, CPUSeconds: v + 6, CPUPerMillion: v + 7, PeakMB: v + 8, BusySeconds: v + 9,
			Debezium: &besideFigures{
				Rates: rates{v + 10, v + 11}, Ratio: rates{v + 12, v + 13}, CPUSeconds: v + 14, CPUPerMillion: v + 15, BusySeconds: v + 16,
				BusyPerMillion: v + 17, PeakMB: v + 18, ToCeiling: rates{v + 19, v + 20},
			},
		}
	}
	runs := []figures{f("none", 1, 30), f("none", 2, 10), f("none", 3, 20), f("all", 1, 4), f("all", 2, 2)}
	require.Equal(t, []figures{f("none", 0, 20), f("all", 0, 3)}, medians(runs))
	require.Equal(t, f("none", 1, 30), runs[0], "the runs stay as they were")
}

func TestCompare(t *testing.T) {
	f := figures{Events: 2_000_000, Ceilings: []rates{{300, 500}, {500, 700}}, Worker: rates{100, 300}, CPUSeconds: 7}
	f.compare()
	require.Equal(t, rates{400, 600}, f.Ceiling)
	require.Equal(t, rates{0.25, 0.5}, f.Ratio)
	require.InDelta(t, 3.5, f.CPUPerMillion, 1e-9)
	d := besideFigures{Rates: rates{50, 100}, CPUSeconds: 30, BusySeconds: 20}
	d.compared(&f)
	require.Equal(t, besideFigures{
		Rates: rates{50, 100}, Ratio: rates{2, 3}, CPUSeconds: 30, CPUPerMillion: 15, BusySeconds: 20, BusyPerMillion: 10,
	}, d)
	f.Debezium, f.Ceiling = &d, rates{}
	f.compare()
	require.Equal(t, rates{50. / 400, 100. / 600}, d.ToCeiling)
}

func TestPublish(t *testing.T) {
	r := report{Facts: []fact{{"Go", "1"}}, Runs: []figures{{Variant: "none", Round: 1, Events: 10, Ceilings: []rates{{1, 2}}, Ratio: rates{0.617, 0.753}}}}
	var out bytes.Buffer
	require.NoError(t, r.publish(&out, ""))
	require.Regexp(t, `(?m)^Go +1$`, out.String())
	require.Regexp(t, `(?m)^none +1 +10 .* 0\.75 .* 0\.62 `, out.String())
	require.Regexp(t, `(?m)^none +median +10 .* 0\.75 .* 0\.62 `, out.String())
	r.Runs[0].Ceiling, r.Runs[0].Worker = rates{Steady: 400}, rates{Steady: 300}
	r.Runs[0].Debezium = &besideFigures{Rates: rates{Steady: 100}, Ratio: rates{Steady: 3}, ToCeiling: rates{Steady: 0.24}, BusyPerMillion: 12.5, PeakMB: 900}
	r.Compared, r.Runs = r.Runs, nil
	out.Reset()
	require.NoError(t, r.publish(&out, ""))
	require.Regexp(t, `(?m)^none +median +10 +400 +300 +100 +0\.75 +0\.24 +3\.00 .* 12\.50 .* 900$`, out.String())
	require.ErrorContains(t, (&report{}).publish(&out, filepath.Join(t.TempDir(), "no", "folder")), "write the report")
}
