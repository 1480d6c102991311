package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/convert"
	"auditsink/internal/testkit"
)

// failing builds the program that obeys failpoints, once for all tests of the process.
var failing = sync.OnceValues(func() (string, error) {
	tests, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(tests), "auditsink-failpoints")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-tags", "failpoints", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the program with failpoints: %w\n%s", err, out)
	}
	return path, nil
})

// replacedTables are some of the replaced system's, with rows of six months.
const replacedTables = `
	CREATE TABLE audit_log (
		id serial PRIMARY KEY, timestamp timestamptz NOT NULL, ttl varchar(255), principal_id varchar(255), organization_id varchar(255), action varchar(255) NOT NULL,
		target_resource_type varchar(255), target_resource_id varchar(255), status varchar(20) NOT NULL, outcome_description text, hash varchar(64),
		hash_algorithm varchar(50) DEFAULT 'SHA-256', event_version varchar(20) DEFAULT '1.0', correlation_id varchar(255), data_classification varchar(20) DEFAULT 'INTERNAL',
		retention_policy varchar(50) DEFAULT 'standard', processing_latency integer, archived_at timestamptz, details jsonb);
	CREATE INDEX audit_log_timestamp_idx ON audit_log (timestamp);
	CREATE TABLE audit_retention_policy (
		id serial PRIMARY KEY, policy_name varchar(255) NOT NULL UNIQUE, retention_days integer NOT NULL, archive_after_days integer, delete_after_days integer,
		data_classification varchar(20) NOT NULL, description text, is_active boolean NOT NULL DEFAULT true, created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE audit_integrity_log (
		id serial PRIMARY KEY, audit_log_id integer NOT NULL, verification_timestamp timestamptz NOT NULL DEFAULT now(), verification_status varchar(20) NOT NULL, verification_details jsonb,
		verified_by varchar(255), hash_verified varchar(64), expected_hash varchar(64));
	INSERT INTO audit_integrity_log (audit_log_id, verification_status) SELECT i, 'success' FROM generate_series(1, 60) i;
	INSERT INTO audit_retention_policy (policy_name, retention_days, data_classification) VALUES ('mine', 30, 'PUBLIC');
	INSERT INTO audit_log (timestamp, action, status, details) SELECT now() - make_interval(days => i % 180, secs => i), 'before', 'success', jsonb_build_object('i', i) FROM generate_series(1, 600) i`

// meanwhile is what the replaced system goes on doing, whatever becomes of the conversion.
const meanwhile = `
	INSERT INTO audit_log (timestamp, action, status) SELECT now() - make_interval(days => 50 * i), 'meanwhile', 'failure' FROM generate_series(0, 5) i;
	UPDATE audit_log SET timestamp = timestamp - interval '1 month', outcome_description = 'changed' WHERE id % 97 = 5;
	DELETE FROM audit_log WHERE id % 101 = 7;
	UPDATE audit_integrity_log SET verified_by = 'somebody' WHERE id % 7 = 1; DELETE FROM audit_integrity_log WHERE id % 9 = 5;
	INSERT INTO audit_integrity_log (audit_log_id, verification_status) VALUES (1, 'failure')`

// allRows is what an audit_log holds, whichever it is.
const allRows = `SELECT coalesce(md5(string_agg(ROW(id::bigint, timestamp, ttl, principal_id, organization_id, action, target_resource_type, target_resource_id, status, outcome_description, hash, hash_algorithm,
	event_version, correlation_id, data_classification, retention_policy, processing_latency, archived_at, details)::text, '|' ORDER BY id, timestamp)), '') || ' ' || count(*) || ' ' ||
	(SELECT string_agg(ROW(id::bigint, audit_log_id::bigint, verification_timestamp, verification_status, verified_by)::text, ' ' ORDER BY id) FROM audit_integrity_log) FROM audit_log`

// killed runs the program until a failpoint kills it, and tells whether it came so far.
func killed(t *testing.T, databaseURL, failpoint string, args ...string) bool {
	t.Helper()
	path, err := failing()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), path, append([]string{"migrate", "convert"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "AUDITSINK_POSTGRES_URL=" + databaseURL, "FAILPOINT=" + failpoint}
	err = cmd.Run()
	if err != nil {
		require.ErrorContains(t, err, "signal: killed", "%s: %s", failpoint, errs.String())
	}
	return err != nil
}

// convertPoints are all moments of a conversion; of those that come more than once, some.
var convertPoints = []string{
	"convert.staged=kill@1", "convert.migrated=kill@1", "convert.granted=kill@1", "convert.noting=kill@1", "convert.integrity=kill@2", "convert.month=kill@1", "convert.month=kill@3", "convert.batch=kill@1",
	"convert.batch=kill@8", "convert.loaded=kill@2", "convert.vacuumed=kill@2", "convert.attached=kill@1", "convert.attached=kill@4", "convert.applied=kill@1", "convert.reconciling=kill@1",
	"convert.reconciled=kill@1", "convert.swap.locked=kill@1", "convert.swap.before-commit=kill@1", "convert.swapped=kill@1",
}

// TestConvertKilled: wherever a conversion is killed, the replaced system goes on with its table, and the same command finishes with all rows as they are by then.
func TestConvertKilled(t *testing.T) {
	for _, version := range []int{15, 18} {
		for _, point := range convertPoints {
			t.Run(fmt.Sprintf("%d/%s", version, point), func(t *testing.T) {
				databaseURL := testkit.Postgres(t, version)
				statement(t, databaseURL, replacedTables)
				if strings.HasPrefix(point, "convert.applied") { // there must be something to apply
					require.True(t, killed(t, databaseURL, "convert.loaded=kill@1", "--batch", "25"))
					statement(t, databaseURL, meanwhile)
				}
				require.True(t, killed(t, databaseURL, point, "--batch", "25"), "it comes to this")
				if point != "convert.swapped=kill@1" {
					statement(t, databaseURL, meanwhile)
				}
				want := value(t, databaseURL, allRows)
				last := number(t, databaseURL, `SELECT last_value FROM audit_log_id_seq`)

				code, out, errs := execute(t, settings{"POSTGRES_URL": databaseURL}, "migrate", "convert", "--batch", "25")
				require.Zero(t, code, errs)
				require.Contains(t, out, "--drop-replaced")
				require.Equal(t, want, value(t, databaseURL, allRows))
				require.Equal(t, last+1, number(t, databaseURL, `WITH new AS (INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'new', 'success') RETURNING id) SELECT id FROM new`))
				require.Equal(t, "mine 30", value(t, databaseURL, `SELECT string_agg(policy_name || ' ' || retention_days, ', ') FROM audit_retention_policy`))
				require.Contains(t, succeed(t, settings{"POSTGRES_URL": databaseURL}, "migrate", "up"), "0 migrations applied, 0 table partitions created")
				code, out, errs = execute(t, settings{"POSTGRES_URL": databaseURL}, "migrate", "convert", "--drop-replaced")
				require.Zero(t, code, errs)
				require.Contains(t, out, "dropped the replaced table")
			})
		}
	}
}

// TestConvertFrozen: a process that is frozen with the table locked is ended by the server, and the replaced system goes on.
func TestConvertFrozen(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			path, err := failing()
			require.NoError(t, err)
			databaseURL := testkit.Postgres(t, version)
			statement(t, databaseURL, replacedTables)
			cmd := exec.CommandContext(t.Context(), path, "migrate", "convert")
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "AUDITSINK_POSTGRES_URL=" + databaseURL, "FAILPOINT=convert.swap.locked=stop@1"}
			require.NoError(t, cmd.Start())
			eventually(t, "it has the lock", func() bool {
				return number(t, databaseURL, `SELECT count(*) FROM pg_locks WHERE relation = 'audit_log'::regclass AND mode = 'AccessExclusiveLock' AND granted`) == 1
			})
			statement(t, databaseURL, `SET lock_timeout = '1min'; INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'meanwhile', 'success')`)
			require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
			require.Error(t, cmd.Wait())
			want := value(t, databaseURL, allRows)
			code, _, errs := execute(t, settings{"POSTGRES_URL": databaseURL}, "migrate", "convert")
			require.Zero(t, code, errs)
			require.Equal(t, want, value(t, databaseURL, allRows))
		})
	}
}

// TestConvertRollback: from every moment before the swap there is a way back, also when that is killed, and nothing is left of the conversion.
func TestConvertRollback(t *testing.T) {
	const shape = `SELECT string_agg(line, ' ' ORDER BY line) FROM (
		SELECT relname::text || relkind::text || coalesce(relacl::text, '') AS line FROM pg_class WHERE relnamespace = 'public'::regnamespace
		UNION ALL SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal UNION ALL SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'audit%' UNION ALL SELECT proname::text FROM pg_proc WHERE proname ~ 'audit|convert_') l`
	for i, point := range convertPoints[:len(convertPoints)-1] {
		version := []int{15, 18}[i%2]
		t.Run(fmt.Sprintf("%d/%s", version, point), func(t *testing.T) {
			databaseURL := testkit.Postgres(t, version)
			statement(t, databaseURL, replacedTables)
			before := value(t, databaseURL, shape)
			if strings.HasPrefix(point, "convert.applied") {
				require.True(t, killed(t, databaseURL, "convert.loaded=kill@1", "--batch", "25"))
				statement(t, databaseURL, meanwhile)
			}
			require.True(t, killed(t, databaseURL, point, "--batch", "25"), "it comes to this")
			statement(t, databaseURL, meanwhile)
			want := value(t, databaseURL, allRows)
			s := settings{"POSTGRES_URL": databaseURL}
			if killed(t, databaseURL, []string{"convert.rolling-back=kill@1", "convert.rollback.dropped=kill@2"}[i/2%2], "--rollback") {
				code, _, errs := execute(t, s, "migrate", "convert")
				require.Equal(t, exitUsage, code)
				require.Contains(t, errs, "--rollback")
				code, out, errs := execute(t, s, "migrate", "convert", "--rollback", "--json")
				require.Zero(t, code, errs)
				require.JSONEq(t, `{"rolled_back": true}`, out)
			}
			require.Equal(t, want, value(t, databaseURL, allRows))
			require.Equal(t, before, value(t, databaseURL, shape))
			statement(t, databaseURL, meanwhile)
		})
	}
}

// TestConvertThenRun: the table serves a worker at once.
func TestConvertThenRun(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, version), testkit.Name(t)
			broker.CreateTopic(t, topic, 2, nil)
			statement(t, databaseURL, replacedTables)
			s := workerSettings(broker, topic, databaseURL)
			code, _, errs := execute(t, s, "run")
			require.Equal(t, exitUsage, code)
			require.Contains(t, errs, "migrate convert")

			code, out, errs := execute(t, s, "migrate", "convert", "--dry-run", "--json")
			require.Zero(t, code, errs)
			var plan convert.Plan
			require.NoError(t, json.Unmarshal([]byte(out), &plan))
			require.EqualValues(t, 600, plan.Rows)
			code, out, errs = execute(t, s, "migrate", "convert", "--json")
			require.Zero(t, code, errs)
			var summary convert.Summary
			require.NoError(t, json.Unmarshal([]byte(out), &summary))
			require.EqualValues(t, 600, summary.Rows)
			require.Contains(t, errs, "copying")
			code, out, errs = execute(t, s, "migrate", "convert")
			require.Zero(t, code, errs)
			require.Contains(t, out, "nothing to convert")
			code, _, errs = execute(t, s, "migrate", "convert", "--rollback")
			require.Equal(t, exitUsage, code)
			require.Contains(t, errs, "audit_replaced")

			publish(t, broker, topic, 500, 1)
			worker := start(t, s, "run")
			eventually(t, "all are stored", func() bool { return number(t, databaseURL, `SELECT count(*) FROM audit_log`) == 1100 })
			worker.stop(t)
			require.Equal(t, int64(500), number(t, databaseURL, `SELECT count(*) FROM audit_log WHERE lane_id IS NOT NULL AND id > 600`))
		})
	}
}

func TestConvertUsage(t *testing.T) {
	s := settings{"POSTGRES_URL": testkit.Postgres(t, 18)}
	for _, args := range [][]string{{"--batch", "0"}, {"--pause", "-1s"}, {"--dry-run", "--rollback"}, {"x"}} {
		code, _, errs := execute(t, s, append([]string{"migrate", "convert"}, args...)...)
		require.Equal(t, exitUsage, code, "%s: %s", args, errs)
	}
	statement(t, s["POSTGRES_URL"], replacedTables+`; CREATE VIEW v AS SELECT id FROM audit_log; UPDATE audit_log SET status = 'odd' WHERE id < 4`)
	for _, args := range [][]string{nil, {"--dry-run"}} {
		code, _, errs := execute(t, s, append([]string{"migrate", "convert"}, args...)...)
		require.Equal(t, exitUsage, code)
		require.Contains(t, errs, "view public.v depends on public.audit_log: drop it")
		require.Contains(t, errs, "3 rows")
	}
}

func TestConvertProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := newConvertProgress(&out)
	p.now = func() time.Time { return now }
	for i := range 20 {
		p.report(convert.Progress{Stage: "copying", Month: "2025-06", Done: int64(1000 + 500*i), Total: 20000})
		now = now.Add(time.Second)
	}
	p.report(convert.Progress{Stage: "swapping", Done: 20000, Total: 20000, Note: "waiting for a lock"})
	require.Equal(t, []string{
		"copying 2025-06 · [#...................]   5 % · 1000 of 20000 rows",
		"copying 2025-06 · [###.................]  18 % · 3500 of 20000 rows · 500 rows/s · ETA 33s",
		"copying 2025-06 · [######..............]  30 % · 6000 of 20000 rows · 500 rows/s · ETA 28s",
		"copying 2025-06 · [########............]  42 % · 8500 of 20000 rows · 500 rows/s · ETA 23s",
		"swapping · [####################] 100 % · 20000 of 20000 rows · waiting for a lock",
	}, strings.Split(strings.TrimSpace(out.String()), "\n"))
}
