package partitions

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

// what tells what a round did, and to which partitions.
func what(done []Action) []string {
	all := []string{}
	for _, a := range done {
		all = append(all, strings.TrimPrefix(a.Name, "audit_log_")+" "+a.What)
	}
	return all
}

func retire(t *testing.T, db *pgxpool.Pool, term Term, now time.Time) []string {
	t.Helper()
	done, err := Retire(t.Context(), db, term, now, enforced)
	require.NoError(t, err)
	return what(done)
}

// waitingOn tells whether a session waits for a lock on a table.
func waitingOn(t *testing.T, db *pgxpool.Pool, table string) bool {
	t.Helper()
	return column[bool](t, db, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = $1::regclass)`, table)[0]
}

// A hold that is being placed when a partition is to be dropped is seen; or it comes when the partition is gone, and says so by holding nothing.
func TestHoldWhileDropping(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		term, now := lead(t, db, "me"), at("2015-06-01")
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		now = now.Add(enforced.Grace)

		// The hold is first: DROP waits for it, gives up, and finds it in the next round.
		placing := begin(t, db)
		_, err := placeHold(t.Context(), placing, Hold{From: at("2015-01-31"), Reason: "r"}, "me")
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 waits"}, retire(t, db, term, now))
		require.NoError(t, placing.Commit(t.Context()))
		require.Equal(t, []string{"2015_01 restored"}, retire(t, db, term, now))
		require.Empty(t, retire(t, db, term, now))
		require.Equal(t, []int64{1}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
		holds, err := Holds(t.Context(), db, false)
		require.NoError(t, err)
		_, err = ReleaseHold(t.Context(), db, holds[0].ID, "over", "me")
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		now = now.Add(enforced.Grace)

		// DROP is first: it has looked, and is held up at the term. The hold waits until it is gone.
		electing := begin(t, db)
		exec(t, electing, `UPDATE audit_leader SET renewed_at = now()`)
		var dropping, holding errgroup.Group
		var done []Action
		dropping.Go(func() (err error) { done, err = Retire(t.Context(), db, term, now, enforced); return err })
		require.Eventually(t, func() bool {
			return column[bool](t, db, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid')`)[0]
		}, testTimeout, testTick)
		holding.Go(func() error { _, err := PlaceHold(t.Context(), db, Hold{Reason: "r"}, "me"); return err })
		require.Eventually(t, func() bool { return waitingOn(t, db, "audit_legal_hold") }, testTimeout, testTick)
		require.NoError(t, electing.Commit(t.Context()))
		require.NoError(t, dropping.Wait())
		require.NoError(t, holding.Wait())
		require.Equal(t, []string{"2015_01 dropped"}, what(done))
	})
}

func TestHolds(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		organization, correlation := "o", "c"
		placed, err := PlaceHold(t.Context(), db, Hold{From: at("2015-01-01"), Until: at("2015-02-01"), Organization: &organization, Correlation: &correlation, Reason: "a case"}, "anna@host/1")
		require.NoError(t, err)
		require.Equal(t, "anna@host/1 (postgres)", placed.PlacedBy)
		exec(t, db, `INSERT INTO audit_legal_hold (held_from, held_until, reason) VALUES ('-infinity', 'infinity', 'by SQL')`)
		all, err := Holds(t.Context(), db, false)
		require.NoError(t, err)
		require.Len(t, all, 2)
		require.Equal(t, placed, all[0])
		require.True(t, all[1].From.IsZero() && all[1].Until.IsZero())

		released, err := ReleaseHold(t.Context(), db, placed.ID, "closed", "bert@host/2")
		require.NoError(t, err)
		require.Equal(t, "bert@host/2 (postgres): closed", released.ReleasedBy+": "+released.ReleaseReason)
		again, err := ReleaseHold(t.Context(), db, placed.ID, "once more", "cora@host/3")
		require.ErrorIs(t, err, ErrReleased)
		require.Equal(t, released, again)
		_, err = ReleaseHold(t.Context(), db, 12345, "x", "y")
		require.ErrorContains(t, err, "there is no such hold")
		_, err = PlaceHold(t.Context(), db, Hold{}, "y")
		require.Error(t, err, "there must be a reason")

		left, err := Holds(t.Context(), db, false)
		require.NoError(t, err)
		require.Len(t, left, 1)
		all, err = Holds(t.Context(), db, true)
		require.NoError(t, err)
		require.Len(t, all, 2)

		// What covers which partition.
		exec(t, db, `DELETE FROM audit_legal_hold`)
		january, february := month(t, db, "2015-01-01"), month(t, db, "2015-02-01")
		exec(t, db, `INSERT INTO audit_log (timestamp, action, status, organization_id, correlation_id) VALUES
			('2015-01-15 00:00+00', 'a', 'success', 'o', NULL), ('2015-02-15 00:00+00', 'a', 'success', 'o', 'c'), ('2015-02-16 00:00+00', 'a', 'success', 'p', NULL)`)
		other, neither := "p", "q"
		for _, c := range []struct {
			hold              Hold
			january, february bool
		}{
			{Hold{}, true, true},
			{Hold{From: february.From}, false, true},
			{Hold{Until: february.From}, true, false},
			{Hold{From: january.To.Add(-time.Microsecond), Until: february.From.Add(time.Microsecond)}, true, true},
			{Hold{From: at("2015-03-01")}, false, false},
			{Hold{Organization: &organization}, true, true},
			{Hold{Organization: &other}, false, true},
			{Hold{Organization: &neither}, false, false},
			{Hold{Organization: &organization, From: at("2015-01-15")}, true, true},
			{Hold{Organization: &organization, From: at("2015-01-15").Add(time.Microsecond)}, false, true},
			{Hold{Organization: &organization, Until: at("2015-01-15")}, false, false},
			{Hold{Correlation: &correlation}, false, true},
			{Hold{Correlation: &correlation, Organization: &organization}, false, true},
			{Hold{Correlation: &correlation, Organization: &other}, false, false},
		} {
			c.hold.Reason = "r"
			h, err := PlaceHold(t.Context(), db, c.hold, "me")
			require.NoError(t, err)
			fates, err := Outlook(t.Context(), db, now, enforced)
			require.NoError(t, err)
			require.Equal(t, c.january, len(fates[0].Holds) == 1, "%+v", c.hold)
			require.Equal(t, c.february, len(fates[1].Holds) == 1, "%+v", c.hold)
			_, err = ReleaseHold(t.Context(), db, h.ID, "r", "me")
			require.NoError(t, err)
		}
	})
}

// What was detached comes back with its rows, indexes and grants, and nothing of it is read for that.
func TestRestore(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		exec(t, db, `DO $$ BEGIN CREATE ROLE auditor; EXCEPTION WHEN duplicate_object THEN NULL; END $$; GRANT SELECT ON audit_log TO auditor`)
		january := month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		shape := `SELECT c.relacl::text || ' ' || (SELECT string_agg(i.indexrelid::regclass || ' in ' || h.inhparent::regclass, ' ' ORDER BY 1) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid WHERE i.indrelid = c.oid)
			FROM pg_class c WHERE relname = 'audit_log_2015_01' AND relispartition`
		before := column[string](t, db, shape)
		require.Len(t, before, 1)
		term, now := lead(t, db, "me"), at("2015-06-01")

		restored, err := Restore(t.Context(), db, january.Name, "a case", "anna")
		require.NoError(t, err)
		require.Equal(t, Restored{Bounds: january, What: "attached"}, restored)
		_, err = Restore(t.Context(), db, "audit_log_1999_01", "a case", "anna")
		require.ErrorContains(t, err, "there is no such partition")

		back := func() {
			t.Helper()
			restored, err := Restore(t.Context(), db, january.Name, "a case", "anna")
			require.NoError(t, err)
			require.Equal(t, "restored", restored.What)
			require.Equal(t, january.From, restored.Hold.From)
			require.Equal(t, january.To, restored.Hold.Until)
			require.Equal(t, before, column[string](t, db, shape))
			require.Equal(t, []int64{1}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
			require.Empty(t, retire(t, db, term, now), "it is held")
			_, err = ReleaseHold(t.Context(), db, restored.Hold.ID, "over", "anna")
			require.NoError(t, err)
		}
		// Verified, and no more than that.
		r := &round{db: db, term: term, now: now, retention: enforced}
		w, err := lookAt(t.Context(), db, january.Name)
		require.NoError(t, err)
		require.NoError(t, r.take(t.Context(), w, verify))
		require.Equal(t, []string{"2015_01 verified"}, what(r.done))
		back()
		// Pending.
		w, err = lookAt(t.Context(), db, january.Name)
		require.NoError(t, err)
		require.NoError(t, r.take(t.Context(), w, verify))
		reader := begin(t, db)
		require.Equal(t, []int64{1}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
		impatient := open(t, url, "lock_timeout", "100ms")
		_, err = impatient.Exec(t.Context(), `ALTER TABLE audit_log DETACH PARTITION audit_log_2015_01 CONCURRENTLY`)
		require.ErrorContains(t, err, "55P03")
		require.NoError(t, reader.Commit(t.Context()))
		back()
		// Detached.
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		back()
		require.Len(t, column[string](t, db, `SELECT kind FROM audit_partition_event WHERE kind = 'restore' AND detail->>'why' = 'a case'`), 2)
		// Dropped.
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		require.Equal(t, []string{"2015_01 dropped"}, retire(t, db, term, now.Add(enforced.Grace)))
		_, err = Restore(t.Context(), db, january.Name, "a case", "anna")
		require.ErrorContains(t, err, "it was dropped at 20")
		require.ErrorContains(t, err, "with 1 rows")
	})
}

// A detach and an attach leave the settings of a pooler's sessions as they were, and ATTACH reads no row.
func TestRetireThroughAPooler(t *testing.T) {
	direct := testkit.Postgres(t, 18)
	_, err := migrations.Apply(t.Context(), direct)
	require.NoError(t, err)
	db := open(t, testkit.OwnPgBouncer(t, direct), "default_query_exec_mode", "exec")
	now := expiredWorld(t, db)
	settings := `SELECT concat_ws(' ', current_setting('lock_timeout'), current_setting('statement_timeout'), current_setting('timezone'), current_setting('datestyle'))`
	before := column[string](t, db, settings)
	require.NoError(t, rounds(t.Context(), db, lead(t, db, "me"), now))
	for range 10 {
		require.Equal(t, before, column[string](t, db, settings))
	}
	requireFinished(t, db)
}

func TestAttachReadsNoRow(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, lead(t, db, "me"), at("2015-06-01")))
		cfg, err := pgx.ParseConfig(url)
		require.NoError(t, err)
		var notices []string
		cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Message) }
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, conn.Close(t.Context())) })
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		exec(t, tx, `SET LOCAL client_min_messages = debug1`)
		_, err = takeBack(t.Context(), tx, "audit_log_2015_01", "r", nil)
		require.NoError(t, err)
		require.NoError(t, tx.Commit(t.Context()))
		require.Contains(t, strings.Join(notices, "\n"), `partition constraint for table "audit_log_2015_01" is implied by existing constraints`)
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, lead(t, db, "me"), at("2015-06-01")), "and again")
	})
}
