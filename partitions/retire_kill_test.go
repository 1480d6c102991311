package partitions

import (
	"bytes"
	"context"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// The test binary is also a leader to be killed, with failpoints, told what to do by these variables.
const (
	childURL  = "PARTITIONS_CHILD_URL"
	childTerm = "PARTITIONS_CHILD_TERM"
	childNow  = "PARTITIONS_CHILD_NOW"
)

// maybeRetire is the child's life: a round, and another when the grace period is over.
func maybeRetire() {
	url := os.Getenv(childURL)
	if url == "" {
		return
	}
	err := func() error {
		ctx := context.Background()
		db, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		defer db.Close()
		now, err := time.Parse(time.RFC3339Nano, os.Getenv(childNow))
		if err != nil {
			return err
		}
		number, err := strconv.ParseInt(os.Getenv(childTerm), 10, 64)
		if err != nil {
			return err
		}
		return rounds(ctx, db, Term{Number: number, Holder: "child"}, now)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func rounds(ctx context.Context, db *pgxpool.Pool, term Term, now time.Time) error {
	for _, at := range []time.Time{now, now.Add(enforced.Grace)} {
		_, err := Retire(ctx, db, term, at, enforced)
		if err == nil {
			_, err = Expire(ctx, db, term, at, enforced)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// failing builds the test binary with failpoints, once.
var failing = sync.OnceValues(func() (string, error) {
	tests, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(tests), "partitions-failpoints.test")
	out, err := osexec.CommandContext(context.Background(), "go", "test", "-c", "-tags", "failpoints", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the tests with failpoints: %w\n%s", err, out)
	}
	return path, nil
})

// child starts a leader of its own process, that stops at a failpoint.
func child(t *testing.T, url string, db *pgxpool.Pool, now time.Time, failpoint string) *osexec.Cmd {
	t.Helper()
	path, err := failing()
	require.NoError(t, err)
	term := lead(t, db, "child")
	cmd := osexec.CommandContext(t.Context(), path)
	cmd.Env = append(os.Environ(), childURL+"="+url, childTerm+"="+strconv.FormatInt(term.Number, 10), childNow+"="+now.Format(time.RFC3339Nano), "FAILPOINT="+failpoint)
	said := &bytes.Buffer{}
	cmd.Stderr = said
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if t.Failed() && cmd.ProcessState != nil {
			t.Logf("the child said: %s", said)
		}
	})
	return cmd
}

func requireKilled(t *testing.T, cmd *osexec.Cmd) {
	t.Helper()
	var exit *osexec.ExitError
	err := cmd.Wait()
	require.ErrorAs(t, err, &exit, "it ended without having come there")
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%v", exit)
}

// expiredWorld has a month that has expired with 3 rows, and one with 2,500 expired rows among 2 that stay.
func expiredWorld(t *testing.T, db *pgxpool.Pool) (now time.Time) {
	t.Helper()
	month(t, db, "2015-01-01")
	month(t, db, "2015-02-01")
	for _, day := range []string{"2015-01-01", "2015-01-20", "2015-01-31"} {
		row(t, db, day, "minimal")
	}
	row(t, db, "2015-02-01", "standard")
	row(t, db, "2015-02-28", "")
	exec(t, db, `INSERT INTO audit_log (timestamp, action, status, retention_policy) SELECT '2015-02-10 00:00+00'::timestamptz + make_interval(secs => n), 'a', 'success', 'minimal' FROM generate_series(1, 2500) n`)
	return at("2015-06-01")
}

// requireFinished requires that all of expiredWorld is gone that shall, and what has gone is on record, once.
func requireFinished(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	require.Equal(t, []string{"audit_log_2015_02"}, column[string](t, db, tables))
	require.Equal(t, []int64{2}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
	require.Equal(t, []string{"done 3"}, column[string](t, db, `SELECT state || ' ' || row_count FROM audit_partition_event WHERE kind = 'drop'`))
	require.Equal(t, []string{"done 2500"}, column[string](t, db, `SELECT state || ' ' || row_count FROM audit_partition_event WHERE kind = 'expire'`))
}

// TestRetireIsKilled: SIGKILL at each step of a real process, and the next leader finishes.
func TestRetireIsKilled(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		for _, c := range []struct{ failpoint, state string }{
			{"retire.verify.before-commit=kill@1", ""},
			{"retire.verify.after-commit=kill@1", "attached; drop verified 3"},
			{"retire.detach.before=kill@1", "attached; drop verified 3"},
			{"retire.detach.after=kill@1", "loose; drop verified 3"},
			{"retire.settle.before-commit=kill@1", "loose; drop verified 3"},
			{"retire.settle.after-commit=kill@1", "loose; drop detached 3, detach done 3"},
			{"expire.verified=kill@1", "loose; drop detached 3, detach done 3, expire verified 0 of 2500"},
			{"expire.batch.before-commit=kill@2", "loose; drop detached 3, detach done 3, expire verified 1000 of 2500"},
			{"expire.batch=kill@2", "loose; drop detached 3, detach done 3, expire verified 2000 of 2500"},
			{"retire.drop.before-commit=kill@1", "loose; drop detached 3, detach done 3, expire done 2500 of 2500"},
			{"retire.drop.after-commit=kill@1", "gone; drop done 3, detach done 3, expire done 2500 of 2500"},
		} {
			t.Run(c.failpoint, func(t *testing.T) {
				exec(t, db, `DROP TABLE IF EXISTS audit_log_2015_01; DROP TABLE IF EXISTS audit_log_2015_02; DELETE FROM audit_partition_event`)
				now := expiredWorld(t, db)
				requireKilled(t, child(t, url, db, now, c.failpoint))
				require.Eventually(t, func() bool {
					return column[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND state <> 'idle'`)[0] == 1
				}, testTimeout, testTick, "what it began ends")
				if c.state != "" {
					require.Equal(t, c.state, column[string](t, db, `
						SELECT CASE WHEN EXISTS (SELECT FROM audit_log_partition_bounds() WHERE partition_name = 'audit_log_2015_01') THEN 'attached'
							WHEN to_regclass('audit_log_2015_01') IS NULL THEN 'gone' ELSE 'loose' END || '; ' ||
							string_agg(kind || ' ' || state || ' ' || row_count || coalesce(' of ' || (detail->>'counted'), ''), ', ' ORDER BY id)
						FROM audit_partition_event WHERE kind <> 'create'`)[0])
				}
				require.NoError(t, rounds(t.Context(), db, lead(t, db, "next"), now))
				requireFinished(t, db)
			})
		}
	})
}

// TestRetireIsKilledInADetach: the process dies while its DETACH waits for a reader. Until the reader is done it is pending, and the server goes on with it
// or leaves it to the next leader.
func TestRetireIsKilledInADetach(t *testing.T) {
	_, err := failing() // building it takes as long as a reader may
	require.NoError(t, err)
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		now := expiredWorld(t, db)
		reader := begin(t, db)
		require.Equal(t, []int64{2505}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
		cmd := child(t, url, db, now, "none=kill@1")
		pending := func() bool {
			return column[bool](t, db, `SELECT EXISTS (SELECT FROM audit_log_partition_bounds() WHERE is_detaching)`)[0]
		}
		require.Eventually(t, pending, testTimeout, testTick)
		require.NoError(t, cmd.Process.Kill())
		requireKilled(t, cmd)
		insert(t, db, "2015-02-20") // ingest goes on
		exec(t, db, `DELETE FROM audit_log WHERE timestamp = '2015-02-20 00:00+00'`)

		// The next leader waits neither for the reader nor with the rest.
		next := lead(t, db, "next")
		done, err := Retire(t.Context(), db, next, now, enforced)
		require.NoError(t, err)
		require.True(t, len(done) == 1 && done[0].What == "waits", "%v", done)
		require.Equal(t, []int64{2505}, column[int64](t, reader, `SELECT count(*) FROM audit_log`), "the reader reads what it read")
		require.NoError(t, reader.Commit(t.Context()))
		require.Eventually(t, func() bool {
			_, err := Retire(t.Context(), db, next, now, enforced)
			require.NoError(t, err)
			return column[bool](t, db, `SELECT EXISTS (SELECT FROM audit_partition_event WHERE kind = 'drop' AND state = 'detached')`)[0]
		}, testTimeout, testTick)
		require.NoError(t, rounds(t.Context(), db, next, now))
		requireFinished(t, db)
	})
}

// TestReaderWithALongTransaction: where somebody has used audit_log for long, a detach isn't begun, since it would be pending until they are done.
func TestReaderWithALongTransaction(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		now := expiredWorld(t, db)
		reader := begin(t, db)
		require.Equal(t, []int64{2505}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
		require.Eventually(t, func() bool {
			return column[bool](t, db, `SELECT clock_timestamp() - min(xact_start) > make_interval(secs => $1) FROM pg_stat_activity WHERE state = 'idle in transaction'`, detachAge.Seconds())[0]
		}, testTimeout, time.Second)
		term := lead(t, db, "me")
		for range 2 {
			done, err := Retire(t.Context(), db, term, now, enforced)
			require.NoError(t, err)
			require.Equal(t, "waits", done[len(done)-1].What)
			require.Contains(t, done[len(done)-1].Why, "a transaction that uses audit_log has lasted")
			require.Empty(t, column[string](t, db, `SELECT partition_name FROM audit_log_partition_bounds() WHERE is_detaching`))
		}
		insert(t, db, "2015-01-20")
		exec(t, db, `DELETE FROM audit_log WHERE retention_policy = 'standard' AND timestamp = '2015-01-20 00:00+00'`)
		require.NoError(t, reader.Commit(t.Context()))
		require.NoError(t, rounds(t.Context(), db, term, now))
		requireFinished(t, db)
	})
}

// TestDetachTimesOut: a reader that came just before a DETACH doesn't end within its time. It stays pending, and is finished later.
func TestDetachTimesOut(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		now := expiredWorld(t, db)
		term := lead(t, db, "me")
		reader := begin(t, db)
		require.Equal(t, []int64{2505}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
		done, err := Retire(t.Context(), db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"verified", "waits"}, []string{done[0].What, done[1].What})
		require.Contains(t, done[1].Why, "55P03")
		require.NoError(t, reader.Commit(t.Context()))
		require.Empty(t, column[string](t, db, `SELECT 'lock_timeout' WHERE current_setting('lock_timeout') <> '0' OR current_setting('statement_timeout') <> '0'`))
		require.Equal(t, Detaching, func() string {
			fates, err := Outlook(t.Context(), db, now, enforced)
			require.NoError(t, err)
			return fates[0].State
		}())
		done, err = Retire(t.Context(), db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, "finalized detached", strings.Join([]string{done[0].What, done[1].What}, " "))
		require.NoError(t, rounds(t.Context(), db, term, now))
		requireFinished(t, db)
	})
}

// TestRetireIsFrozen: a leader stops at each step, another takes over, and the first goes on: it does nothing more, save a DETACH that was all but sent, which its
// successor puts right.
func TestRetireIsFrozen(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		state := func() string {
			return column[string](t, db, `SELECT concat((SELECT string_agg(b::text, ' ') FROM audit_log_partition_bounds() b), (SELECT count(*) FROM audit_log),
				(SELECT string_agg(e::text, ' ' ORDER BY id) FROM audit_partition_event e), (SELECT string_agg(t.relname, ' ' ORDER BY 1) FROM (`+tables+`) t))`)[0]
		}
		for _, failpoint := range []string{
			"retire.verify.before-commit", "retire.verify.after-commit", "retire.detach.before", "retire.detach.after", "retire.settle.before-commit",
			"expire.verified", "expire.batch.before-commit", "expire.batch", "retire.drop.before-commit", "retire.drop.after-commit",
		} {
			t.Run(failpoint, func(t *testing.T) {
				exec(t, db, `DROP TABLE IF EXISTS audit_log_2015_01; DROP TABLE IF EXISTS audit_log_2015_02; DELETE FROM audit_partition_event`)
				now := expiredWorld(t, db)
				before := state()
				cmd := child(t, url, db, now, failpoint+"=stop@1")
				require.Eventually(t, func() bool { return stopped(t, cmd.Process.Pid) }, testTimeout, testTick)
				if failpoint != "retire.verify.before-commit" {
					before = state()
				}
				next := lead(t, db, "next") // in a transaction it is still leader until the server ends its session
				require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
				require.Error(t, cmd.Wait(), "it must know that it was deposed")
				if failpoint != "retire.detach.before" {
					require.Equal(t, before, state())
				}
				require.NoError(t, rounds(t.Context(), db, next, now))
				requireFinished(t, db)
			})
		}
	})
}

// stopped tells whether a process is.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "T")
}

// TestFinalizeIsKilled: SIGKILL while an interrupted detach is being finished, and right after.
func TestFinalizeIsKilled(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db, impatient := open(t, url), open(t, url, "lock_timeout", "100ms")
		for _, failpoint := range []string{"retire.finalize.before-commit", "retire.finalize.after-commit"} {
			exec(t, db, `DROP TABLE IF EXISTS audit_log_2015_01; DROP TABLE IF EXISTS audit_log_2015_02; DELETE FROM audit_partition_event`)
			now := expiredWorld(t, db)
			r := &round{db: db, term: lead(t, db, "me"), now: now, retention: enforced}
			require.NoError(t, r.take(t.Context(), mustLook(t, db, "audit_log_2015_01"), verify))
			reader := begin(t, db)
			require.Equal(t, []int64{2505}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
			_, err := impatient.Exec(t.Context(), `ALTER TABLE audit_log DETACH PARTITION audit_log_2015_01 CONCURRENTLY`)
			require.ErrorContains(t, err, "55P03")
			require.NoError(t, reader.Commit(t.Context()))
			requireKilled(t, child(t, url, db, now, failpoint+"=kill@1"))
			require.Equal(t, failpoint == "retire.finalize.before-commit", mustLook(t, db, "audit_log_2015_01").Detaching, failpoint)
			require.NoError(t, rounds(t.Context(), db, lead(t, db, "next"), now))
			requireFinished(t, db)
		}
	})
}
