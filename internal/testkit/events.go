package testkit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// FillEvents adds rows to audit_log of a database that has been migrated: so many, evenly spread over so many months from a first of a month on, UTC, four of each instant, in
// monthly partitions that it makes, with all indexes, analyzed. Each column has values that are frequent and such that are rare:
//
//	principal_id          service (a fifth), user-0 … user-4999; rare: user-rare (three)
//	organization_id       org-0 (half), org-1 … org-39; rare: org-rare (three)
//	action                data.read (three quarters), data.update, auth.login; rare: data.purge (three)
//	status                success, failure; rare: attempt (three)
//	target_resource_type  patient (four fifths), study; rare: legacy (three)
//	target_resource_id    resource-0 … resource-19999
//	correlation_id        corr-0 …, three rows each
//	data_classification   PHI (two thirds), INTERNAL, CONFIDENTIAL; rare: PUBLIC (three)
//	retention_policy      standard (three quarters), 2555; rare: minimal (three)
//	archived_at           a year later for the first quarter of the months, else null
//	hash                  of the row's number, 0 …: encode(sha256(number::text::bytea), 'hex')
//
// The three are always the same rows: a sixth, a half and five sixths into the range.
func FillEvents(ctx context.Context, url string, rows, months int, first time.Time) error {
	queue := make(chan int, months)
	for m := range months {
		queue <- m
	}
	close(queue)
	group, ctx := errgroup.WithContext(ctx)
	for range 2 { // the machine's cores
		group.Go(func() error {
			conn, err := pgx.Connect(ctx, url)
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			for m := range queue {
				if err = fillMonth(ctx, conn, rows, months, m, first); err != nil {
					break
				}
			}
			return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
		})
	}
	return group.Wait()
}

// fillMonth makes one partition. Its indexes are built once the rows are there, and all in one transaction, so that a server of wal_level minimal writes no log.
func fillMonth(ctx context.Context, conn *pgx.Conn, rows, months, m int, first time.Time) error {
	from, to := first.AddDate(0, m, 0), first.AddDate(0, m+1, 0)
	table := "audit_log_" + from.Format("2006_01")
	begin, end := rows*m/months, rows*(m+1)/months
	step := to.Sub(from).Microseconds() / int64((end-begin)/4+1)
	archived := "NULL"
	if m < months/4 {
		archived = "t + interval '365 days'"
	}
	var hashes []string // independent of one another, so that no two columns are
	for n := range 10 {
		hashes = append(hashes, fmt.Sprintf("hashint8extended(i, %d) & 1073741823", n))
	}
	_, err := conn.Exec(ctx, fmt.Sprintf(`
		BEGIN;
		SET LOCAL synchronous_commit = off; SET LOCAL maintenance_work_mem = '128MB'; SET LOCAL timezone = 'UTC'; SET LOCAL max_parallel_maintenance_workers = 0;
		CREATE TABLE %[1]s (LIKE audit_log INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES);
		INSERT INTO %[1]s (id, timestamp, principal_id, organization_id, action, status, hash, target_resource_type, target_resource_id, correlation_id, data_classification, retention_policy,
			processing_latency, archived_at, outcome_description, details, lane_id, lane_offset)
		SELECT i + 1, t, CASE WHEN rare THEN 'user-rare' WHEN h[1] %% 5 = 0 THEN 'service' ELSE 'user-' || h[2] %% 5000 END,
			CASE WHEN rare THEN 'org-rare' WHEN h[3] %% 2 = 0 THEN 'org-0' ELSE 'org-' || 1 + h[4] %% 39 END,
			CASE WHEN rare THEN 'data.purge' ELSE (ARRAY['data.read', 'data.read', 'data.read', 'data.read', 'data.read', 'data.read', 'data.update', 'auth.login'])[1 + h[5] %% 8] END,
			CASE WHEN rare THEN 'attempt' WHEN h[6] %% 10 = 0 THEN 'failure' ELSE 'success' END,
			encode(sha256(i::text::bytea), 'hex'), CASE WHEN rare THEN 'legacy' WHEN h[7] %% 5 = 0 THEN 'study' ELSE 'patient' END, 'resource-' || h[8] %% 20000, 'corr-' || i / 3,
			CASE WHEN rare THEN 'PUBLIC' ELSE (ARRAY['PHI', 'PHI', 'PHI', 'PHI', 'INTERNAL', 'CONFIDENTIAL'])[1 + h[9] %% 6] END,
			CASE WHEN rare THEN 'minimal' WHEN h[10] %% 4 = 0 THEN '2555' ELSE 'standard' END,
			h[1] %% 1000, %[5]s, 'Outcome of number ' || i, jsonb_build_object('source', 'ehr', 'session', md5(i::text), 'fields', '["name", "dob", "mrn"]'::jsonb), 1, i
		FROM (SELECT i, '%[2]s'::timestamptz + (i - %[3]d) / 4 * interval '1 microsecond' * %[6]d AS t, i IN (%[7]d, %[8]d, %[9]d) AS rare,
				ARRAY[%[11]s] AS h
			FROM generate_series(%[3]d::bigint, %[4]d - 1) i) numbers;
		ALTER TABLE %[1]s ADD PRIMARY KEY (id, timestamp);
		DO $$ DECLARE definition text; BEGIN
			FOR definition IN SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'audit_log'::regclass AND NOT indisprimary LOOP
				EXECUTE regexp_replace(definition, ' INDEX \S+ ON ONLY \S+ ', ' INDEX ON %[1]s ');
			END LOOP;
		END $$;
		ALTER TABLE audit_log ATTACH PARTITION %[1]s FOR VALUES FROM ('%[2]s') TO ('%[10]s');
		COMMIT`,
		table, from.Format(time.RFC3339), begin, end, archived, step, rows/6, rows/2, rows*5/6, to.Format(time.RFC3339), strings.Join(hashes, ", ")))
	if err == nil {
		_, err = conn.Exec(ctx, `VACUUM (ANALYZE) `+table)
	}
	if err != nil {
		return fmt.Errorf("fill %s: %w", table, err)
	}
	return nil
}
