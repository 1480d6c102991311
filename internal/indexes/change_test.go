package indexes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// patient is how long a test waits for what must come.
const patient = 5 * time.Minute

// now is in the third month: of three partitions two have ended.
func now() time.Time { return month.AddDate(0, 2, 9) }

// world has three months with rows, an index that a DBA made on audit_log and one on a partition, and a partition that was detached and may come back.
func world(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn := testkit.Connect(t, db)
	for n := range 3 {
		partition(t, conn, n)
	}
	testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, principal_id, action, status) SELECT '2026-03-01 00:00+00'::timestamptz + make_interval(hours => n), 'p' || n % 7, 'a' || n % 3, 'success' FROM generate_series(0, 2180) n`)
	testkit.Exec(t, conn, `CREATE INDEX audit_log_ttl_idx ON audit_log (ttl); CREATE INDEX audit_log_2026_03_mine_idx ON audit_log_2026_03 (event_version);
		CREATE INDEX audit_log_2026_04_hidden_idx ON audit_log_2026_04 (event_version)`)
	testkit.Exec(t, conn, `SELECT create_audit_log_partition('audit_log_2026_02', '2026-02-01 00:00+00', '2026-03-01 00:00+00');
		INSERT INTO audit_log (timestamp, action, status) VALUES ('2026-02-05', 'a', 'success');
		ALTER TABLE audit_log DETACH PARTITION audit_log_2026_02;
		INSERT INTO audit_partition_event (partition_name, kind, state, lower_bound, upper_bound) VALUES ('audit_log_2026_02', 'drop', 'detached', '2026-02-01 00:00+00', '2026-03-01 00:00+00')`)
	return conn
}

// run is a change as the command makes it.
func run(t *testing.T, db string, to Choice) []Step {
	t.Helper()
	conn := testkit.Connect(t, db)
	var did []Step
	require.NoError(t, Change{To: to, Grace: time.Hour, Now: now, Did: func(s Step) { did = append(did, s) }}.Run(t.Context(), conn))
	return did
}

// requireExactly requires of every table that it has the indexes of a choice, each once, valid, and those of the DBA.
func requireExactly(t *testing.T, conn *pgx.Conn, c Choice) {
	t.Helper()
	had, err := Chosen(t.Context(), conn)
	require.NoError(t, err)
	require.Equal(t, c, had)
	require.Empty(t, testkit.Column[string](t, conn, `SELECT indexrelid::regclass::text FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)`))
	parent, tables, err := survey(t.Context(), conn)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(tables), 4)
	for _, r := range append([]relation{parent}, tables...) {
		want := map[string]int{}
		for _, i := range c.Parent() {
			want[i.definition()]++
		}
		if (Change{To: c, Grace: time.Hour, Now: now}).ended(r) {
			for _, i := range c.Later() {
				want[i.definition()]++
			}
		}
		want["USING btree (ttl)"]++
		if slices.Contains([]string{"audit_log_2026_03", "audit_log_2026_04"}, r.name) {
			want["USING btree (event_version)"]++
		}
		have := map[string]int{}
		for _, p := range r.indexes {
			if p.Definition != "" {
				have[p.Definition]++
			}
		}
		require.Equal(t, want, have, "%s of %s", r.name, c)
	}
	steps, err := Change{To: c, Grace: time.Hour, Now: now}.Plan(t.Context(), conn)
	require.NoError(t, err)
	require.Empty(t, steps)
}

// writing adds and reads rows until it is told to stop, which says how many, and fails where a statement did or waited for more than a moment.
func writing(t *testing.T, db string) (stop func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	var written atomic.Int64
	failed := make(chan error, 3)
	for n := range 3 {
		conn := testkit.Connect(t, db)
		group.Go(func() {
			for ctx.Err() == nil {
				// As long as locks are waited for in a try, with time for a slow machine.
				sql := `SET LOCAL statement_timeout = '20s'; INSERT INTO audit_log (timestamp, action, status, principal_id) SELECT timestamptz '2026-03-01 00:00+00' + random() * interval '90 days', 'w', 'success', 'w' FROM generate_series(1, 20)`
				if n == 2 {
					sql = `SET LOCAL statement_timeout = '20s'; SELECT count(*) FROM audit_log WHERE principal_id = 'p1'`
				}
				if _, err := conn.Exec(t.Context(), sql); err != nil {
					failed <- err
					return
				}
				if n < 2 {
					written.Add(20)
				}
				time.Sleep(5 * time.Millisecond) // the cores are for the change
			}
		})
	}
	return func() int64 {
		cancel()
		group.Wait()
		select {
		case err := <-failed:
			require.NoError(t, err)
		default:
		}
		return written.Load()
	}
}

// TestChange: through all choices, beside writers and readers, and a partition that comes meanwhile.
func TestChange(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		before := testkit.Column[int64](t, conn, `SELECT count(*) FROM audit_log`)[0]
		stop := writing(t, db)
		at := choices[0]
		for _, next := range []int{2, 3, 1, 0} {
			to := choices[next]
			steps, err := Change{To: to, Grace: time.Hour, Now: now}.Plan(t.Context(), conn)
			require.NoError(t, err)
			require.NotEmpty(t, steps)
			did := run(t, db, to)
			require.Equal(t, fmt.Sprint(steps), fmt.Sprint(did), "%s to %s", at, to)
			removes := func(s Step) bool { return s.What == Dropping || s.What == Clearing }
			for _, s := range did[slices.IndexFunc(did, removes):] {
				require.True(t, removes(s), "%s: once something was dropped", s)
			}
			requireExactly(t, conn, to)
			require.Empty(t, run(t, db, to))
			at = to
		}
		written := stop()
		require.Positive(t, written)
		require.Equal(t, before+written, testkit.Column[int64](t, conn, `SELECT count(*) FROM audit_log`)[0])
		require.Equal(t, int64(4), testkit.Column[int64](t, conn, `SELECT count(*) FROM audit_partition_event WHERE kind = 'index' AND state = 'done'`)[0])
		// What was detached comes back, and nothing has to be built for that.
		testkit.Exec(t, conn, `ALTER TABLE audit_log ATTACH PARTITION audit_log_2026_02 FOR VALUES FROM ('2026-02-01 00:00+00') TO ('2026-03-01 00:00+00')`)
	})
}

// TestChangeMeanwhile: a partition that is made, with rows, between any two steps has what the others have.
func TestChangeMeanwhile(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		steps, err := Change{To: choices[1], Grace: time.Hour, Now: now}.Plan(t.Context(), conn)
		require.NoError(t, err)
		n := 0
		change := Change{To: choices[1], Grace: time.Hour, Now: now, Did: func(s Step) {
			if n++; n%7 == 0 || s.What == Creating {
				name := partition(t, conn, 3+n)
				testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES ($1, 'a', 'success')`, month.AddDate(0, 3+n, 3))
				require.NotEmpty(t, name)
			}
		}}
		require.NoError(t, change.Run(t.Context(), testkit.Connect(t, db)))
		require.Greater(t, n, len(steps))
		requireExactly(t, conn, choices[1])
		// Between the look and the lock: nothing is built under it.
		err = Change{To: choices[1], Now: now}.do(t.Context(), conn, Step{What: Creating, Table: "audit_log", Name: "audit_log_action_idx", index: full[3]})
		require.ErrorIs(t, err, errNotReady)
	})
}

// TestChangeOvertaken: where another choice is made meanwhile, a change ends, and drops nothing that is wanted by then.
func TestChangeOvertaken(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		once := sync.Once{}
		change := Change{To: choices[1], Grace: time.Hour, Now: now, Did: func(s Step) {
			if s.What == Dropping {
				once.Do(func() { run(t, db, choices[0]) })
			}
		}}
		require.ErrorIs(t, change.Run(t.Context(), testkit.Connect(t, db)), ErrOvertaken)
		requireExactly(t, conn, choices[0])
		// Between the look and the lock.
		c := Change{To: choices[1], Now: now}
		steps, err := c.Plan(t.Context(), conn)
		require.NoError(t, err)
		last := steps[slices.IndexFunc(steps, func(s Step) bool { return s.What == Dropping })]
		require.ErrorIs(t, c.do(t.Context(), conn, last), ErrOvertaken)
		requireExactly(t, conn, choices[0])
	})
}

// TestFinishOfAnother: who has nothing left to do doesn't say that what another has chosen since is done.
func TestFinishOfAnother(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		begin := func(c Choice) {
			require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return choose(t.Context(), tx, c, "verified") }))
		}
		begin(choices[1])
		begin(choices[2])
		require.NoError(t, finish(t.Context(), conn, choices[1]))
		states := `SELECT state || ' ' || (detail->>'profile') || ' ' || (detail->>'build') FROM audit_partition_event WHERE kind = 'index' ORDER BY id DESC LIMIT 2`
		name := func(state string, c Choice) string { return fmt.Sprint(state, " ", c.Profile, " ", c.Build) }
		require.Equal(t, []string{name("verified", choices[2]), name("refused", choices[1])}, testkit.Column[string](t, conn, states))
		require.NoError(t, finish(t.Context(), conn, choices[2]))
		require.Equal(t, name("done", choices[2]), testkit.Column[string](t, conn, states)[0])
	})
}

// TestChangeOutlastsTheRole: what the role or the database allows other statements and transactions ends no build.
func TestChangeOutlastsTheRole(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		own := testkit.Connect(t, db)
		testkit.Exec(t, own, `SET statement_timeout = '1h'; SELECT set_config(name, '1h', false) FROM pg_settings WHERE name = 'transaction_timeout'`)
		require.NoError(t, Change{To: choices[1], Now: now}.Run(t.Context(), own))
		limits := testkit.Column[string](t, own, `SELECT name || '=' || setting FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout') AND setting <> '0'`)
		require.Empty(t, limits)
	})
}

// TestChooseAfterAChange: wherever a change of an empty audit_log was stopped, a choice finds what there is, and makes of it what it wants.
func TestChooseAfterAChange(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		p := partition(t, conn, 0)
		for n := range 12 {
			ctx, cancel := context.WithCancel(t.Context())
			change := Change{To: choices[1], Grace: time.Hour, Now: now, Did: func(Step) {
				if n--; n < 0 {
					cancel()
				}
			}}
			require.ErrorIs(t, change.Run(ctx, testkit.Connect(t, db)), context.Canceled)
			require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return Choose(t.Context(), tx, choices[0]) }))
			for _, table := range []string{"audit_log", p} {
				r, err := look(t.Context(), conn, table)
				require.NoError(t, err)
				require.Len(t, r.indexes, 1+len(full), table)
			}
			steps, err := Change{To: choices[0], Grace: time.Hour, Now: now}.Plan(t.Context(), conn)
			require.NoError(t, err)
			require.Empty(t, steps)
		}
	})
}

// TestChangeWaits: somebody who uses audit_log for long holds up a step, and nobody else.
func TestChangeWaits(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		run(t, db, choices[2])
		reader := testkit.Connect(t, db)
		testkit.Exec(t, reader, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM audit_log`)
		stop := writing(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		own := testkit.Connect(t, db)
		go func() { ended <- Change{To: choices[3], Grace: time.Hour, Now: now}.Run(ctx, own) }()
		testkit.Eventually(t, patient, "it builds", func() bool {
			return testkit.Column[int64](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'virtualxid' AND query LIKE 'CREATE INDEX CONCURRENTLY%'`)[0] == 1
		})
		testkit.Exec(t, conn, `SELECT count(*) FROM audit_log`)
		testkit.Exec(t, reader, `COMMIT`)
		require.NoError(t, <-ended)
		cancel()
		requireExactly(t, conn, choices[3])
		require.Positive(t, stop())
	})
}

// TestChangeBeside: a name that is taken ends a change with an error that says so, and what was done until then is sound.
func TestChangeBeside(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		testkit.Exec(t, conn, `CREATE INDEX audit_log_2026_04_archived_idx ON audit_log_2026_04 (ttl, event_version)`)
		err := Change{To: choices[1], Grace: time.Hour, Now: now}.Run(t.Context(), testkit.Connect(t, db))
		var taken *NameTakenError
		require.True(t, errors.As(err, &taken), "%v", err)
		testkit.Exec(t, conn, `DROP INDEX audit_log_2026_04_archived_idx`)
		// A DBA's index of the same definition is taken over.
		testkit.Exec(t, conn, `CREATE INDEX dbas ON audit_log_2026_04 (archived_at) WHERE archived_at IS NOT NULL`)
		// What has the name of audit_log's is in the way as well, and also where that comes while the partitions' are built.
		testkit.Exec(t, conn, `CREATE TABLE audit_log_bloom_idx ()`)
		err = Change{To: choices[1], Grace: time.Hour, Now: now}.Run(t.Context(), testkit.Connect(t, db))
		require.True(t, errors.As(err, &taken), "%v", err)
		testkit.Exec(t, conn, `DROP TABLE audit_log_bloom_idx`)
		run(t, db, choices[1])
		requireExactly(t, conn, choices[1])
		// One of a profile's definition that isn't to be had is still a DBA's by its name.
		testkit.Exec(t, conn, `CREATE INDEX dbas_own ON audit_log_2026_04 (hash); CREATE INDEX dbas_wide ON audit_log (hash)`)
		run(t, db, choices[3])
		require.Equal(t, []string{"dbas_own", "dbas_wide"}, testkit.Column[string](t, conn, `SELECT relname::text FROM pg_class WHERE relname LIKE 'dbas\_%' AND relkind IN ('i', 'I') ORDER BY 1`))
	})
}

// TestNoChangeThroughAPooler: others would get the session with its settings.
func TestNoChangeThroughAPooler(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		cfg, err := pgx.ParseConfig(testkit.OwnPgBouncer(t, db))
		require.NoError(t, err)
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
		through, err := pgx.ConnectConfig(t.Context(), cfg)
		require.NoError(t, err)
		defer through.Close(t.Context()) //nolint:errcheck // nothing depends on how it ends
		err = Change{To: choices[1], Grace: time.Hour, Now: now}.Run(t.Context(), through)
		require.ErrorIs(t, err, ErrPooler)
		require.ErrorContains(t, err, "AUDITSINK_POSTGRES_MAINTENANCE_URL")
		requireExactly(t, conn, choices[0])
		require.Equal(t, []string{"0"}, testkit.Column[string](t, through, `SELECT setting FROM pg_settings WHERE name = 'lock_timeout'`))
	})
}

// TestGraceOfTheLeader: who changes indexes by a longer grace than the leader's leaves what that has built of a partition whose interval has just ended; of one that still takes rows nobody wants more.
func TestGraceOfTheLeader(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		deferred := Choice{Full, Deferred}
		run(t, db, deferred)
		requireExactly(t, conn, deferred)
		end := month.AddDate(0, 1, 0)
		plan := func(now time.Time) []Step {
			steps, err := Change{To: deferred, Grace: time.Hour, Now: func() time.Time { return now }}.Plan(t.Context(), conn)
			require.NoError(t, err)
			return slices.DeleteFunc(steps, func(s Step) bool { return s.Table != "audit_log_2026_03" })
		}
		require.Empty(t, plan(end))
		require.Len(t, plan(end.Add(-time.Microsecond)), len(deferred.Later()))
	})
}
