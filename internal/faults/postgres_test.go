package faults

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

var postgresScenarios = []scenario{
	{name: "postgres/backends-terminated", run: func(e *env) { signalled(e, "pg_terminate_backend") }},
	{name: "postgres/statements-cancelled", run: func(e *env) { signalled(e, "pg_cancel_backend") }},
	{name: "postgres/immediate-stop", run: func(e *env) { serverGone(e, (*testkit.PostgresServer).Immediate) }},
	{name: "postgres/killed", run: func(e *env) { serverGone(e, (*testkit.PostgresServer).Kill) }},
	{name: "postgres/frozen", run: serverFrozen},
	{name: "postgres/read-only", run: readOnly},
	{name: "postgres/statement-timeout", run: statementTimeout},
	{name: "postgres/lock-timeout", run: lockTimeout},
	{name: "postgres/deadlock", run: deadlock},
	{name: "postgres/pool-exhausted", run: poolExhausted},
	{name: "postgres/too-many-connections", run: tooManyConnections},
	{name: "postgres/disk-full", run: diskFull},
	{name: "postgres/failover-sync", run: failoverSync},
	{name: "postgres/failover-async", run: failoverAsync},
}

// sessions are the workers' own.
const sessions = `FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'auditsink'`

// terminate ends the workers' sessions.
func (e *env) terminateSessions() {
	e.Helper()
	e.statement(`SELECT pg_terminate_backend(pid) ` + sessions)
}

// signalled disturbs all sessions of the workers again and again.
func signalled(e *env, function string) {
	e.build(world{})
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	for range times(15, 60) {
		e.pass(200 * time.Millisecond)
		e.statement(`SELECT ` + function + `(pid) ` + sessions)
		e.awaitStored(5)
	}
	e.clean()
}

// serverGone takes the server away in the middle of the work, and brings it back.
func serverGone(e *env, goAway func(*testkit.PostgresServer) error) {
	server := testkit.OwnPostgres(e, testkit.PostgresOptions{Version: 18})
	e.build(world{server: server})
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	for range times(3, 8) {
		e.awaitStored(50)
		e.pass(200 * time.Millisecond)
		require.NoError(e, goAway(server))
		e.pass(2 * time.Second)
		require.NoError(e, server.Restart(e.Context()))
	}
	e.clean()
}

// serverFrozen stops the server where it is: connections stay, and nothing answers.
func serverFrozen(e *env) {
	server := testkit.OwnPostgres(e, testkit.PostgresOptions{Version: 18})
	e.build(world{server: server})
	e.produce(loadOptions{})
	e.worker()
	w := e.worker()
	for n := range times(2, 4) {
		w.awaitLanes(1)
		e.awaitStored(50)
		require.NoError(e, server.Pause())
		if n == 0 {
			e.eventually("it isn't ready", func() bool { ok, _ := w.ready(); return !ok })
		} else {
			e.pass(5 * time.Second)
		}
		require.NoError(e, server.Continue())
	}
	w.awaitReady()
	e.clean()
}

// readOnly flips the database to read-only, as a failover does for those who stay with the old primary, and back. The workers must leave the sessions
// that came up read-only by themselves. Meanwhile one dies, and the others can't claim its lanes yet.
func readOnly(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	for range times(2, 5) {
		victim, heir := e.worker(), e.worker()
		heir.awaitLanes(1)
		victim.awaitLanes(1)
		e.awaitStored(50)
		e.statement(`ALTER DATABASE ` + e.database() + ` SET default_transaction_read_only = on`)
		e.terminateSessions()
		victim.kill()
		e.eventually("the worker is refused a claim", func() bool { return heir.said("waiting to claim lane") && heir.said("25006") })
		e.statement(`ALTER DATABASE ` + e.database() + ` RESET default_transaction_read_only`)
		e.awaitStored(100)
		heir.stop()
	}
	e.clean()
}

// held runs while another session holds what a statement locks.
func (e *env) held(lock string, args []any, while func()) {
	e.Helper()
	tx, err := e.db.Begin(e.Context())
	require.NoError(e, err)
	defer tx.Rollback(context.WithoutCancel(e.Context())) //nolint:errcheck // it only held locks
	_, err = tx.Exec(e.Context(), lock, args...)
	require.NoError(e, err, lock)
	while()
}

const (
	lockLanes = `SELECT FROM audit_lane FOR UPDATE`
	lockRows  = `LOCK TABLE audit_log IN SHARE MODE`
)

// statementTimeout has statements cancelled that wait for a lock.
func statementTimeout(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	e.statement(`ALTER DATABASE ` + e.database() + ` SET statement_timeout = '300ms'`)
	w := e.worker()
	for range times(2, 5) {
		for _, lock := range []string{lockLanes, lockRows} {
			w.awaitLanes(1)
			e.awaitStored(50)
			said := strings.Count(w.log.String(), "57014")
			e.held(lock, nil, func() {
				e.eventually("statements are cancelled", func() bool { return strings.Count(w.log.String(), "57014") > said })
			})
		}
	}
	e.clean()
}

// lockTimeout holds locks for longer than the workers wait for them.
func lockTimeout(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	w := e.worker()
	for _, lock := range []string{lockLanes, lockRows} {
		w.awaitLanes(1)
		e.awaitStored(50)
		said := strings.Count(w.log.String(), "55P03")
		e.held(lock, nil, func() {
			e.eventually("a worker gives up waiting", func() bool { return strings.Count(w.log.String(), "55P03") > said })
		})
	}
	e.clean()
}

// deadlock takes the worker's locks in the opposite order. The worker is the one that notices, and so the victim.
func deadlock(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	w := e.worker()
	w.awaitLanes(1)
	stranger, err := pgx.Connect(e.Context(), e.databaseURL)
	require.NoError(e, err)
	defer stranger.Close(context.WithoutCancel(e.Context())) //nolint:errcheck // nothing was written
	for range times(2, 6) {
		said := strings.Count(w.log.String(), "40P01")
		e.eventually("the worker is a deadlock's victim", func() bool {
			_, err := stranger.Exec(e.Context(), `BEGIN; SET LOCAL deadlock_timeout = '1min'; SET LOCAL lock_timeout = '5s'; `+lockLanes)
			require.NoError(e, err)
			e.pass(200 * time.Millisecond)                  // a worker has copied meanwhile, and waits for its lane
			_, _ = stranger.Exec(e.Context(), lockRows)     // it waits for the worker, until the worker's transaction is ended or it gives up
			_, err = stranger.Exec(e.Context(), `ROLLBACK`) // whichever it was
			require.NoError(e, err)
			return strings.Count(w.log.String(), "40P01") > said
		})
		e.awaitStored(50)
	}
	e.clean()
}

// poolExhausted lets many lanes share one connection, which a lock holds up now and then.
func poolExhausted(e *env) {
	e.build(world{lanes: 12, settings: settings{"POOL_MAX_CONNS": "1", "POOL_ACQUIRE_TIMEOUT": "200ms"}})
	e.produce(loadOptions{rate: 400})
	w := e.worker()
	for range times(2, 5) {
		w.awaitLanes(1)
		e.awaitStored(100)
		said := strings.Count(w.log.String(), "no connection came free")
		e.held(lockLanes, nil, func() {
			e.eventually("lanes wait for the connection", func() bool { return strings.Count(w.log.String(), "no connection came free") > said })
		})
	}
	e.clean()
}

// tooManyConnections has strangers take every connection that the server has.
func tooManyConnections(e *env) {
	server := testkit.OwnPostgres(e, testkit.PostgresOptions{Version: 18, Settings: map[string]string{"max_connections": "14"}})
	e.build(world{server: server})
	e.produce(loadOptions{})
	w := e.worker()
	for range times(2, 4) {
		w.awaitLanes(1)
		e.awaitStored(50)
		var strangers []*pgx.Conn
		said := strings.Count(w.log.String(), "53300")
		e.eventually("the worker is refused", func() bool {
			e.terminateSessions()
			for {
				conn, err := pgx.Connect(e.Context(), server.URL("postgres"))
				if err != nil {
					break
				}
				strangers = append(strangers, conn)
			}
			return strings.Count(w.log.String(), "53300") > said
		})
		for _, conn := range strangers {
			require.NoError(e, conn.Close(e.Context()))
		}
	}
	e.clean()
}

// diskFull fills the disk that the database is on.
func diskFull(e *env) {
	server := testkit.OwnPostgres(e, testkit.PostgresOptions{Version: 18}) // its checkpoints fail too
	disk, err := server.SmallTablespace(e.Context(), 64<<20)
	require.NoError(e, err)
	databaseURL, err := disk.CreateDatabase(e.Context())
	require.NoError(e, err)
	e.build(world{databaseURL: databaseURL})
	e.produce(loadOptions{})
	w := e.worker()
	for range times(2, 4) {
		w.awaitLanes(1)
		e.awaitStored(50)
		said := strings.Count(w.log.String(), "53100")
		require.NoError(e, disk.Fill())
		e.eventually("the worker has no room", func() bool { return strings.Count(w.log.String(), "53100") > said })
		require.NoError(e, disk.Free())
	}
	e.clean()
}

// pair makes a primary and its standby, with the environment on both.
func (e *env) pair() (primary, standby *testkit.PostgresServer) {
	e.Helper()
	primary = testkit.OwnPostgres(e, testkit.PostgresOptions{Version: 15})
	standby, err := primary.StartStandby(e.Context(), "standby")
	require.NoError(e, err)
	e.Cleanup(func() { require.NoError(e, standby.Close()) })
	one, err := primary.CreateDatabase(e.Context())
	require.NoError(e, err)
	u, err := url.Parse(one)
	require.NoError(e, err)
	e.build(world{databaseURL: testkit.URLOf(strings.TrimPrefix(u.Path, "/"), primary, standby), rewinds: true})
	return primary, standby
}

// failoverSync lets a synchronous standby take over from a primary that died: nothing that was committed is lost.
func failoverSync(e *env) {
	primary, standby := e.pair()
	require.NoError(e, primary.Synchronous(e.Context(), "standby"))
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	e.awaitStored(300)
	e.pass(300 * time.Millisecond)
	require.NoError(e, primary.Kill())
	require.NoError(e, standby.Promote(e.Context()))
	e.awaitStored(300)
	require.Zero(e, e.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'rewound'`), "positions were set back")
	e.clean()
}

// failoverAsync lets a standby take over that had not received the last transactions: the positions go back with the rows, and the records are
// fetched again. A worker that was frozen all the while comes back with the epoch that the standby knows.
func failoverAsync(e *env) {
	primary, standby := e.pair()
	e.produce(loadOptions{})
	crew := []*worker{e.worker(), e.worker()}
	for _, w := range crew {
		w.awaitLanes(1)
	}
	e.awaitStored(200)
	require.NoError(e, standby.HoldBack(e.Context()))
	zombie := crew[e.rng.IntN(2)]
	haunted := e.rng.IntN(2) == 0
	if haunted {
		zombie.freeze()
		e.takenOver(zombie)
	}
	e.awaitStored(300)
	before := e.positions()
	require.NoError(e, primary.Kill())
	require.NoError(e, standby.Promote(e.Context()))
	e.eventually("positions are set back", func() bool { n := e.positions(); return n >= 0 && n < before || e.said("claimed again") })
	if haunted {
		zombie.resume()
	}
	e.eventually("what was lost is stored again", func() bool { return e.positions() > before })
	require.Positive(e, e.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'rewound'`), "a position set back is on record")
	e.clean()
}

// said reports whether any worker has said so.
func (e *env) said(text string) bool {
	for _, w := range e.workers {
		if w.said(text) {
			return true
		}
	}
	return false
}
