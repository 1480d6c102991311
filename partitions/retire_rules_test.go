package partitions

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/postgres"
)

// why returns what the last way out of a partition came to, and why.
func why(t *testing.T, db *pgxpool.Pool, name string) string {
	t.Helper()
	return column[string](t, db, `SELECT state || ': ' || (detail->>'why') FROM audit_partition_event WHERE partition_name = $1 AND kind = 'drop' ORDER BY id DESC LIMIT 1`, name)[0]
}

// What a DBA asks for by SQL is answered by the leader's rules, where the retention is enforced.
func TestRequests(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2015-01-01")
		month(t, db, "2015-02-01")
		month(t, db, "2015-03-01")
		month(t, db, "2015-04-01")
		row(t, db, "2015-01-10", "minimal")
		row(t, db, "2015-02-10", "standard")
		row(t, db, "2015-03-10", "minimal")
		hold, err := PlaceHold(t.Context(), db, Hold{From: at("2015-03-31"), Until: at("2015-04-01"), Reason: "r"}, "me")
		require.NoError(t, err)
		require.Len(t, column[string](t, db, `SELECT partition_name FROM drop_old_audit_partitions(3000)`), 4)
		exec(t, db, `DROP TABLE audit_log_2015_04`)
		term, now := lead(t, db, "me"), at("2016-01-01")

		done, err := Retire(t.Context(), db, term, now, Retention{MinDays: 30})
		require.NoError(t, err)
		require.Equal(t, []string{"2015_04 refused"}, what(done), "the others wait for the retention to be enforced")
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached", "2015_02 refused", "2015_03 refused"}, retire(t, db, term, now))
		require.Equal(t, "refused: kept until 2022-02-27T00:00:00Z, for 2555 days by policy standard", why(t, db, "audit_log_2015_02"))
		require.Equal(t, "refused: expired on 2015-06-30T00:00:00Z, after 90 days by policy minimal; held by legal hold "+fmt.Sprint(hold.ID), why(t, db, "audit_log_2015_03"))
		require.Equal(t, "refused: there is no such partition", why(t, db, "audit_log_2015_04"))
		require.Equal(t, []string{"drop_old_audit_partitions() 3000 postgres"}, column[string](t, db,
			`SELECT concat_ws(' ', detail->'request'->>'why', detail->'request'->>'retention_days', requested_by) FROM audit_partition_event WHERE kind = 'drop' AND state = 'detached'`))
		require.Equal(t, []string{"2015_01 dropped"}, retire(t, db, term, now.Add(enforced.Grace)))
		// Asked again, it is answered again.
		require.Len(t, column[string](t, db, `SELECT partition_name FROM drop_old_audit_partitions(3000)`), 2)
		require.Equal(t, []string{"2015_02 refused", "2015_03 refused"}, retire(t, db, term, now))
	})
}

// "Now" is the earlier of the leader's clock and the database's.
func TestAWrongClockRemovesNothing(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		clock := column[time.Time](t, db, `SELECT clock_timestamp()`)[0]
		b := month(t, db, Month.add(monthOf(clock), -1).Format(time.DateOnly)) // ended less than 31 days ago
		row(t, db, b.From.Format(time.DateOnly), "31")
		term := lead(t, db, "me")
		require.Empty(t, retire(t, db, term, clock.AddDate(100, 0, 0)))
		done, err := Expire(t.Context(), db, term, clock.AddDate(100, 0, 0), Retention{Enforce: true, MinDays: 100})
		require.NoError(t, err)
		require.Empty(t, done)
		require.Equal(t, []int64{1}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
	})
}

// A late event for a partition in its grace period brings it back, as the sink asks for it.
func TestALateEvent(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		january := month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		term, now := lead(t, db, "me"), at("2015-06-01")
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
		var pg *pgconn.PgError
		_, err := db.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status) VALUES ('2015-01-20 12:00+00', 'a', 'success')`)
		require.ErrorAs(t, err, &pg)
		require.Equal(t, "23514", pg.Code)

		steps, err := EnsureFor(t.Context(), db, now, 365*24*time.Hour, Schedule{}, []time.Time{at("2015-01-20")})
		require.NoError(t, err)
		require.Equal(t, Step{Name: january.Name, From: january.From, To: january.To}, steps[0])
		row(t, db, "2015-01-20T12:00:00Z", "standard")
		require.Equal(t, "restored: a late event", why(t, db, january.Name))
		require.Empty(t, retire(t, db, term, now), "it has a row now that hasn't expired")

		// One that comes before what was detached is on record.
		exec(t, db, `UPDATE audit_log SET retention_policy = 'minimal'`)
		r := &round{db: db, term: term, now: now, retention: enforced}
		w, err := lookAt(t.Context(), db, january.Name)
		require.NoError(t, err)
		require.NoError(t, r.take(t.Context(), w, verify))
		row(t, db, "2015-01-21", "standard")
		exec(t, db, `ALTER TABLE audit_log DETACH PARTITION audit_log_2015_01 CONCURRENTLY`)
		require.Equal(t, []string{"2015_01 restored"}, retire(t, db, term, now))
		require.Equal(t, []int64{3}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
	})
}

// What somebody else does by hand is put on record, and left to them.
func TestDetachedByOthers(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "standard")
		reader := begin(t, db)
		require.Equal(t, []int64{1}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
		impatient := open(t, url, "lock_timeout", "100ms")
		_, err := impatient.Exec(t.Context(), `ALTER TABLE audit_log DETACH PARTITION audit_log_2015_01 CONCURRENTLY`)
		require.ErrorContains(t, err, "55P03")
		require.NoError(t, reader.Commit(t.Context()))
		term := lead(t, db, "me")
		require.Equal(t, []string{"2015_01 finalized"}, retire(t, db, term, at("2015-06-01")))
		require.Empty(t, retire(t, db, term, at("2035-06-01")))
		require.Equal(t, []string{"audit_log_2015_01"}, column[string](t, db, tables))
		require.Equal(t, []string{"detach done 0"}, states(t, db, "audit_log_2015_01"))

		// Dropped by hand in its grace period, or attached again.
		month(t, db, "2015-02-01")
		month(t, db, "2015-03-01")
		row(t, db, "2015-02-10", "minimal")
		row(t, db, "2015-03-10", "minimal")
		require.Len(t, retire(t, db, term, at("2015-08-01")), 4)
		exec(t, db, `DROP TABLE audit_log_2015_02; ALTER TABLE audit_log ATTACH PARTITION audit_log_2015_03 FOR VALUES FROM ('2015-03-01 00:00+00') TO ('2015-04-01 00:00+00')`)
		require.Equal(t, []string{"2015_02 dropped", "2015_03 restored", "2015_03 verified", "2015_03 detached"}, retire(t, db, term, at("2015-08-01")))

		// A table of the same name isn't the one that was detached.
		exec(t, db, `ALTER TABLE audit_log_2015_03 RENAME TO precious; CREATE TABLE audit_log_2015_03 (LIKE audit_log)`)
		require.Equal(t, []string{"2015_03 waits"}, retire(t, db, term, at("2016-08-01")))
		exec(t, db, `DROP TABLE audit_log_2015_03; ALTER TABLE precious RENAME TO audit_log_2015_03`)
		require.Equal(t, []string{"2015_03 dropped"}, retire(t, db, term, at("2016-08-01")))
	})
}

// What can't be done with one partition is told, and keeps no other.
func TestRetireGoesOn(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2015-01-01")
		month(t, db, "2015-02-01")
		row(t, db, "2015-01-10", "minimal")
		row(t, db, "2015-02-10", "minimal")
		term, now := lead(t, db, "me"), at("2015-06-01")
		require.Len(t, retire(t, db, term, now), 4)
		exec(t, db, `CREATE VIEW report AS SELECT * FROM audit_log_2015_01`)
		done, err := Retire(t.Context(), db, term, now.Add(enforced.Grace), enforced)
		require.ErrorContains(t, err, "audit_log_2015_01")
		require.ErrorContains(t, err, "2BP01")
		require.Equal(t, []string{"2015_02 dropped"}, what(done))
		exec(t, db, `DROP VIEW report`)
		require.Equal(t, []string{"2015_01 dropped"}, retire(t, db, term, now.Add(enforced.Grace)))

		// Beside a DEFAULT partition nothing can be detached.
		month(t, db, "2015-01-01")
		exec(t, db, `CREATE TABLE rest PARTITION OF audit_log DEFAULT`)
		var def *DefaultPartitionError
		done, err = Retire(t.Context(), db, term, now, enforced)
		require.ErrorAs(t, err, &def)
		require.Equal(t, []string{"2015_01 verified"}, what(done))

		exec(t, db, `DROP TABLE rest`)
		_, err = Retire(t.Context(), db, Term{Number: term.Number - 1, Holder: "me"}, now, enforced)
		require.ErrorIs(t, err, ErrDeposed)
	})
}

func TestOutlookOnAStandby(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		expiredWorld(t, db)
		exec(t, db, `CREATE TABLE older PARTITION OF audit_log FOR VALUES FROM (MINVALUE) TO ('2014-01-01 00:00+00');
			CREATE TABLE newer PARTITION OF audit_log FOR VALUES FROM ('2030-01-01 00:00+00') TO (MAXVALUE);
			CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.other PARTITION OF audit_log FOR VALUES FROM ('2014-01-01 00:00+00') TO ('2014-02-01 00:00+00')`)
		fates, err := Outlook(t.Context(), open(t, url, "default_transaction_read_only", "on"), at("2015-06-01"), enforced)
		require.NoError(t, err)
		got := map[string]string{}
		for _, f := range fates {
			got[f.Name] = f.Why
		}
		require.Equal(t, map[string]string{
			"older":             "it is empty, and kept for 30 days",
			"other":             "never: it isn't a plain table in audit_log's schema",
			"audit_log_2015_01": "expired on 2015-05-02T00:00:00Z, after 90 days by policy minimal",
			"audit_log_2015_02": "kept until 2022-02-27T00:00:00Z, for 2555 days by policy phi_extended",
			"newer":             "never: it has no end",
		}, got)
		exec(t, db, `DROP SCHEMA elsewhere CASCADE`)
	})
}

func TestRemoveEmpty(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		may, june, july := month(t, db, "2027-05-01"), month(t, db, "2027-06-01"), month(t, db, "2027-07-01")
		row(t, db, "2027-06-10", "minimal")
		_, err := PlaceHold(t.Context(), db, Hold{Reason: "holds all events, and there are none"}, "me")
		require.NoError(t, err)
		term := lead(t, db, "me")
		done, err := RemoveEmpty(t.Context(), db, term, []Bounds{may, june, {Name: "audit_log_1999_01"}}, "days shall be there")
		require.NoError(t, err)
		require.Equal(t, []string{"2027_05 detached", "2027_05 dropped"}, what(done))
		require.Equal(t, []string{june.Name, july.Name}, column[string](t, db, tables))
		require.Equal(t, []string{"drop done 0", "detach done 0"}, states(t, db, may.Name))

		// One that gets a row before it is detached comes back, also where the round that began it was cut off.
		r := &round{db: db, term: term, now: end}
		_, err = r.markEmpty(t.Context(), july.Name, "days shall be there")
		require.NoError(t, err)
		row(t, db, "2027-07-10", "minimal")
		exec(t, db, `ALTER TABLE audit_log DETACH PARTITION audit_log_2027_07 CONCURRENTLY`)
		done, err = Retire(t.Context(), db, term, now, Retention{MinDays: 30})
		require.NoError(t, err)
		require.Equal(t, []string{"2027_07 restored"}, what(done))
		require.Equal(t, "restored: it is no longer empty", why(t, db, july.Name))
	})
}

// Rows go in batches, no more than some in a round, and what is locked by somebody is left to the next.
func TestExpire(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url, "pool_max_conns", "10")
		month(t, db, "2015-01-01")
		const all = expireRound + 1500
		exec(t, db, `INSERT INTO audit_log (timestamp, action, status, retention_policy) SELECT '2015-01-10 00:00+00'::timestamptz + make_interval(secs => n), 'a', 'success', 'minimal' FROM generate_series(1, $1::int) n`, all)
		organization := "o"
		exec(t, db, `INSERT INTO audit_log (timestamp, action, status, retention_policy, organization_id) VALUES
			('2015-01-10 00:00+00', 'held', 'success', 'minimal', 'o'), ('2015-01-31 23:00+00', 'young', 'success', '90', 'p'), ('2015-01-01 00:00+00', 'stays', 'success', NULL, NULL)`)
		hold, err := PlaceHold(t.Context(), db, Hold{Organization: &organization, Reason: "r"}, "me")
		require.NoError(t, err)
		term, now := lead(t, db, "me"), at("2015-05-01")
		done, err := Expire(t.Context(), db, term, now, Retention{MinDays: 30})
		require.NoError(t, err)
		require.Empty(t, done, "nothing is removed where it isn't enforced")

		left := func() int64 { return column[int64](t, db, `SELECT count(*) FROM audit_log`)[0] }
		done, err = Expire(t.Context(), db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 expired"}, what(done))
		require.EqualValues(t, expireRound, done[0].Rows)
		require.EqualValues(t, all+3-expireRound, left())
		require.Equal(t, []string{fmt.Sprintf("expire verified %d", expireRound)}, states(t, db, "audit_log_2015_01"))

		other := begin(t, db)
		require.Len(t, column[int64](t, other, `SELECT id FROM audit_log WHERE action = 'a' LIMIT 1 FOR UPDATE`), 1)
		done, err = Expire(t.Context(), db, term, now, enforced)
		require.NoError(t, err)
		require.EqualValues(t, 1499, done[0].Rows)
		require.NoError(t, other.Rollback(t.Context()))
		done, err = Expire(t.Context(), db, term, now, enforced)
		require.NoError(t, err)
		require.EqualValues(t, 1, done[0].Rows)
		require.Equal(t, []string{"held", "stays", "young"}, column[string](t, db, `SELECT action FROM audit_log ORDER BY 1`))

		_, err = ReleaseHold(t.Context(), db, hold.ID, "r", "me")
		require.NoError(t, err)
		done, err = Expire(t.Context(), db, term, at("2015-05-02"), enforced)
		require.NoError(t, err)
		require.Len(t, done, 2)
		require.Equal(t, []string{"stays"}, column[string](t, db, `SELECT action FROM audit_log ORDER BY 1`))
		require.Equal(t, []string{"all done"}, column[string](t, db, `SELECT DISTINCT 'all ' || state FROM audit_partition_event WHERE kind = 'expire'`))
		require.Equal(t, []int64{all + 2}, column[int64](t, db, `SELECT sum(row_count)::bigint FROM audit_partition_event WHERE kind = 'expire'`))
		require.Equal(t, []string{"2015-01-10T00:00:01Z"}, column[string](t, db, `SELECT detail->>'oldest' FROM audit_partition_event WHERE kind = 'expire' ORDER BY id LIMIT 1`))

		// What is counted and then kept after all, since the policy was edited, is closed.
		row(t, db, "2015-01-05", "minimal")
		e := expiring{way: mustLook(t, db, "audit_log_2015_01"), policy: text("minimal")}
		r := &round{db: db, term: term, now: now, retention: enforced}
		_, _, err = r.countExpired(t.Context(), e)
		require.NoError(t, err)
		exec(t, db, `UPDATE audit_retention_policy SET delete_after_days = 1000 WHERE policy_name = 'minimal'`)
		done, err = Expire(t.Context(), db, term, now, enforced)
		require.NoError(t, err)
		require.Empty(t, done)
		require.Empty(t, column[string](t, db, `SELECT state FROM audit_partition_event WHERE kind = 'expire' AND state <> 'done'`))
		require.EqualValues(t, 2, left())
	})
}

func mustLook(t *testing.T, db querier, name string) way {
	t.Helper()
	w, err := lookAt(t.Context(), db, name)
	require.NoError(t, err)
	return w
}

// What can't come back is a matter of its range alone: it must not pass for a fault of the settings, which would end the workers.
func TestALateEventOfATableThatCanNotComeBack(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		now := at("2015-06-01")
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, lead(t, db, "me"), now))
		exec(t, db, `ALTER TABLE audit_log ADD COLUMN leaf_index bigint`)
		late := []time.Time{at("2015-01-20")}
		_, err := EnsureFor(t.Context(), db, now, 365*24*time.Hour, Schedule{}, late)
		require.ErrorContains(t, err, "partition audit_log_2015_01, which was detached since it had expired, can't be attached again")
		require.ErrorContains(t, err, "give it the columns of audit_log")
		require.Equal(t, postgres.Transient, postgres.Classify(err))

		exec(t, db, `ALTER TABLE audit_log_2015_01 ADD COLUMN leaf_index bigint`)
		_, err = EnsureFor(t.Context(), db, now, 365*24*time.Hour, Schedule{}, late)
		require.NoError(t, err)
		row(t, db, "2015-01-20T12:00:00Z", "standard")
	})
}
