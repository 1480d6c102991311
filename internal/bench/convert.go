package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/convert"
)

// convertPlan is how large a table of the replaced system is converted, and under how many writes a second.
type convertPlan struct {
	rows, months, rate, writers int
	before, after               time.Duration // for which is written before the conversion, and after it
}

// convertFigures are what a conversion took, and what those who wrote meanwhile have noticed.
type convertFigures struct {
	Rows    int64   `json:"rows"`
	Months  int     `json:"months"`
	Rate    int     `json:"writes_per_second"`
	Writes  int     `json:"writes"`
	Seconds float64 `json:"seconds"`
	// RowsPerSecond is over the whole conversion.
	RowsPerSecond float64 `json:"rows_per_second"`
	// SwapMillis is how long the swap held its lock.
	SwapMillis float64 `json:"swap_lock_ms"`
	// Latencies of the writes, by phase.
	Latencies []latency `json:"latencies"`
	Bytes     int64     `json:"bytes_before"`
	NewBytes  int64     `json:"bytes_after"`
}

// latency is of the writes that ended within a phase.
type latency struct {
	Phase     string  `json:"phase"`
	Writes    int     `json:"writes"`
	P99Millis float64 `json:"p99_ms"`
	MaxMillis float64 `json:"max_ms"`
}

// replacedSchema is the table as the replaced system has it, with the indexes of both.
const replacedSchema = `
	CREATE TABLE audit_log (
		id serial PRIMARY KEY, timestamp timestamptz NOT NULL, ttl varchar(255), principal_id varchar(255), organization_id varchar(255), action varchar(255) NOT NULL,
		target_resource_type varchar(255), target_resource_id varchar(255), status varchar(20) NOT NULL, outcome_description text, hash varchar(64),
		hash_algorithm varchar(50) DEFAULT 'SHA-256', event_version varchar(20) DEFAULT '1.0', correlation_id varchar(255), data_classification varchar(20) DEFAULT 'INTERNAL',
		retention_policy varchar(50) DEFAULT 'standard', processing_latency integer, archived_at timestamptz, details jsonb);`

// insertRow takes the row's number, which all but the timestamp follow from.
const insertRow = `
	INSERT INTO audit_log (timestamp, principal_id, organization_id, action, target_resource_type, target_resource_id, status, outcome_description, hash, correlation_id, data_classification,
	                       retention_policy, processing_latency, details)
	SELECT %s, 'user-' || i %% 5000, 'org-' || i %% 40, (ARRAY['data.read', 'data.update', 'auth.login', 'data.export'])[1 + i %% 4], 'patient', 'patient-' || i %% 20000,
	       (ARRAY['success', 'success', 'success', 'failure', 'attempt'])[1 + i %% 5], 'Outcome of number ' || i, encode(sha256(i::text::bytea), 'hex'), 'corr-' || i,
	       (ARRAY['PHI', 'INTERNAL', 'CONFIDENTIAL', 'PUBLIC'])[1 + i %% 4], (ARRAY['standard', '2555', 'minimal', 'phi_extended'])[1 + i %% 4], i %% 1000,
	       jsonb_build_object('source', 'ehr', 'ip', '10.0.' || i %% 250 || '.7', 'session', md5(i::text), 'fields', '["name", "dob", "mrn"]'::jsonb)
	FROM %s`

// convertTable measures one conversion. It fails when a write has failed, or when the new table isn't what the old one was.
func (b *bench) convertTable(ctx context.Context) (_ *convertFigures, err error) {
	url, err := b.postgres.CreateDatabase(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.postgres.DropDatabase(context.WithoutCancel(ctx), url)) }()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	f := &convertFigures{Rate: b.convert.rate}
	say("convert: filling a table with %d rows", b.convert.rows)
	if err := b.fillReplaced(ctx, conn); err != nil {
		return nil, fmt.Errorf("fill the table: %w", err)
	}
	if err := conn.QueryRow(ctx, `SELECT pg_total_relation_size('audit_log')`).Scan(&f.Bytes); err != nil {
		return nil, fmt.Errorf("measure the table: %w", err)
	}
	say("convert: %d MB; converting under %d writes a second", f.Bytes/1e6, b.convert.rate)
	if err := b.convertUnderWrites(ctx, url, f); err != nil {
		return nil, err
	}
	say("convert: comparing")
	return f, f.compare(ctx, conn, int64(b.convert.rows))
}

func (b *bench) fillReplaced(ctx context.Context, conn *pgx.Conn) error {
	spread := fmt.Sprintf(`date_trunc('month', now()) - interval '%d months' + (now() - date_trunc('month', now()) + interval '%[1]d months') * (i / %d.0)`, b.convert.months-1, b.convert.rows)
	sql := replacedSchema + fmt.Sprintf(insertRow, spread, fmt.Sprintf("generate_series(1, %d) i", b.convert.rows)) + `;`
	for _, columns := range []string{
		"timestamp", "principal_id", "organization_id", "action", "status", "hash", "target_resource_type", "target_resource_id", "correlation_id", "data_classification",
		"retention_policy", "archived_at",
	} {
		sql += fmt.Sprintf(`CREATE INDEX audit_log_%s_idx ON audit_log (%[1]s);`, columns)
	}
	_, err := conn.Exec(ctx, sql+`
		CREATE INDEX audit_log_timestamp_status_idx ON audit_log (timestamp, status);
		CREATE INDEX audit_log_principal_action_idx ON audit_log (principal_id, action);
		CREATE INDEX audit_log_classification_retention_idx ON audit_log (data_classification, retention_policy);
		CREATE INDEX audit_log_resource_type_id_idx ON audit_log (target_resource_type, target_resource_id)`)
	for _, sql := range []string{`VACUUM ANALYZE audit_log`, `CHECKPOINT`} {
		if err == nil {
			_, err = conn.Exec(ctx, sql)
		}
	}
	return err
}

// write is one that was answered.
type write struct {
	began, ended time.Time
}

// convertUnderWrites converts while rows are inserted one by one, before, meanwhile and afterwards.
func (b *bench) convertUnderWrites(ctx context.Context, url string, f *convertFigures) error {
	stop := make(chan struct{})
	var mu sync.Mutex // guards writes
	var writes []write
	group, ctx := errgroup.WithContext(ctx)
	for w := range b.convert.writers {
		group.Go(func() error {
			return writeRows(ctx, url, w, b.convert.rate/b.convert.writers, stop, func(one write) {
				mu.Lock()
				writes = append(writes, one)
				mu.Unlock()
			})
		})
	}
	var noting, swapping [2]time.Time // from when on, and until when
	group.Go(func() error {
		defer close(stop)
		if err := sleep(ctx, b.convert.before); err != nil {
			return err
		}
		stage := ""
		s, err := convert.Run(ctx, convert.Options{URL: url, Ahead: 6, Batch: 20000, Report: func(p convert.Progress) {
			if p.Stage == stage {
				return
			}
			say("convert: %s", p.Stage)
			if now := time.Now(); p.Stage == "beginning to note changes" {
				noting[0] = now
			} else if stage == "beginning to note changes" {
				noting[1] = now
			} else if p.Stage == "swapping" {
				swapping[0] = now
			}
			stage = p.Stage
		}})
		if err != nil {
			return err
		}
		swapping[1] = time.Now()
		f.Months, f.Seconds, f.SwapMillis = s.Months, s.Seconds, s.LockSeconds*1000
		f.RowsPerSecond = float64(s.Rows) / s.Seconds
		return sleep(ctx, b.convert.after)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	f.Writes = len(writes)
	f.Latencies = []latency{
		latencyOf("all", writes, time.Time{}, time.Now()),
		latencyOf("before", writes, time.Time{}, noting[0].Add(-time.Second)),
		latencyOf("triggers", writes, noting[0], noting[1]),
		latencyOf("copying", writes, noting[1], swapping[0]),
		latencyOf("swap", writes, swapping[0], swapping[1]),
		latencyOf("after", writes, swapping[1], time.Now()),
	}
	return nil
}

// writeRows inserts rows on a connection of its own until told to stop. A write that fails ends it: none is tried again.
func writeRows(ctx context.Context, url string, writer, rate int, stop <-chan struct{}, done func(write)) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect a writer: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	sql := fmt.Sprintf(insertRow, "clock_timestamp()", "(SELECT $1::int AS i) one")
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		began := time.Now()
		if _, err := conn.Exec(ctx, sql, writer*10_000_000+n); err != nil {
			return fmt.Errorf("a write failed: %w", err)
		}
		done(write{began, time.Now()})
	}
}

// latencyOf is of the writes that were under way at some time in between.
func latencyOf(phase string, writes []write, from, till time.Time) latency {
	var took []time.Duration
	for _, w := range writes {
		if w.ended.After(from) && w.began.Before(till) {
			took = append(took, w.ended.Sub(w.began))
		}
	}
	if len(took) == 0 {
		return latency{Phase: phase}
	}
	slices.Sort(took)
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return latency{Phase: phase, Writes: len(took), P99Millis: millis(took[len(took)*99/100]), MaxMillis: millis(took[len(took)-1])}
}

// compare holds the new table against the old one by other means than the conversion's: counts and hashes by month, of all ids that the old one has given.
func (f *convertFigures) compare(ctx context.Context, conn *pgx.Conn, rows int64) error {
	months := func(from, where string) string {
		return `SELECT to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM') AS month, count(*) AS n, sum(hashtextextended(ROW(id::bigint, timestamp AT TIME ZONE 'UTC', ttl, principal_id, organization_id, action,
			target_resource_type, target_resource_id, status, outcome_description, hash, hash_algorithm, event_version, correlation_id, data_classification, retention_policy, processing_latency,
			archived_at AT TIME ZONE 'UTC', details)::text, 7)) AS h FROM ` + from + where + ` GROUP BY 1`
	}
	var differ, stored int64
	err := conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE (o.n, o.h) IS DISTINCT FROM (n.n, n.h)), sum(o.n)::bigint, (SELECT count(*) FROM audit_log)
		FROM (`+months("audit_replaced.audit_log", "")+`) o FULL JOIN (`+months("audit_log", ` WHERE id <= (SELECT max(id) FROM audit_replaced.audit_log)`)+`) n USING (month)`).
		Scan(&differ, &f.Rows, &stored)
	if err == nil {
		err = conn.QueryRow(ctx, `SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('audit_log')`).Scan(&f.NewBytes)
	}
	switch {
	case err != nil:
		return fmt.Errorf("compare: %w", err)
	case differ > 0:
		return fmt.Errorf("%d months differ between the old and the new table", differ)
	case stored != rows+int64(f.Writes):
		return fmt.Errorf("%d rows are there, of %d and %d that were written", stored, rows, f.Writes)
	}
	return nil
}

func (f *convertFigures) print(out *bytes.Buffer) {
	if f == nil {
		return
	}
	fmt.Fprintf(out, "\nconvert: %d rows of %d months (%d MB, then %d MB), %d writes at %d a second, none failed; counts and hashes of every month are equal\n",
		f.Rows, f.Months, f.Bytes/1e6, f.NewBytes/1e6, f.Writes, f.Rate)
	fmt.Fprintf(out, "%.1f s, %.0f rows/s; the swap held its lock for %.0f ms\n", f.Seconds, f.RowsPerSecond, f.SwapMillis)
	fmt.Fprintf(out, "%-10s %8s %12s %12s\n", "", "writes", "p99", "longest")
	for _, l := range f.Latencies {
		fmt.Fprintf(out, "%-10s %8d %9.1f ms %9.1f ms\n", l.Phase, l.Writes, l.P99Millis, l.MaxMillis)
	}
}
