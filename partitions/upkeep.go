package partitions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// settling is how long after its end a partition may still get late events as a matter of course.
	settling = time.Hour
	// analyzeParentEvery is how often the statistics of audit_log as a whole are renewed: autovacuum never does that for a partitioned table.
	analyzeParentEvery = 24 * time.Hour
	// upkeepBegins bounds a round: nothing is begun later than that after its start.
	upkeepBegins = time.Minute
	// upkeepLasts bounds one statement. A VACUUM that is ended goes on where it was in a later round: pages that are frozen are skipped.
	upkeepLasts = "10min"
	// parentLasts bounds the ANALYZE of audit_log, since no partition can be attached meanwhile: less than the patience of who wants one.
	parentLasts = "1min"
	// upkeepLock bounds the wait for a partition's lock. It is shorter than deadlock_timeout, after which Postgres would end an autovacuum for our sake.
	upkeepLock = "500ms"
	// upkeepThrottle are autovacuum's own settings: at most about 400 MB/s read, or 36 MB/s of pages changed.
	upkeepThrottle = `SET LOCAL vacuum_cost_delay = 2; SET LOCAL vacuum_cost_limit = 200`
)

// throughPooler is why a VACUUM is left: one that isn't throttled would be in the way of ingest.
const throughPooler = "the connection goes through a pooler, where it can't be throttled: set AUDITSINK_POSTGRES_MAINTENANCE_URL to the server's own address"

// settings are what create_audit_log_partition() gives a partition: see there. One that came otherwise (restored, attached by hand) may lack them.
var settings = []string{
	"autovacuum_vacuum_insert_threshold=100000", "autovacuum_vacuum_insert_scale_factor=0.1", "autovacuum_analyze_scale_factor=0.05", "autovacuum_freeze_min_age=0",
}

// sinceCreated limits the events of the partition $1 to its present life: another may have had its name.
const sinceCreated = `id > (SELECT coalesce(max(e.id), 0) FROM audit_partition_event e WHERE e.partition_name = $1 AND e.kind = 'create')`

// Care is one thing that [Upkeep] did, or had to leave for another round.
type Care struct {
	Partition string `json:"partition"` // or audit_log itself
	Kind      string `json:"kind"`      // settings, analyze, vacuum or index, as in audit_partition_event; summarize isn't put on record
	Index     string `json:"index,omitempty"`
	Left      string `json:"left,omitempty"`
}

// String describes it for people.
func (c Care) String() string {
	did := map[string]string{
		"settings": "set what autovacuum is to do for", "analyze": "analyze", "vacuum": "vacuum and freeze", "summarize": "summarize the new pages of", "index": "build " + c.Index + " on",
	}[c.Kind]
	if c.Left != "" {
		return fmt.Sprintf("left for later: %s %s: %s", did, c.Partition, c.Left)
	}
	return did + " " + c.Partition
}

// Upkeep looks after the partitions whose interval has ended: each gets its statistics (ANALYZE), and then all its rows are frozen (VACUUM (FREEZE)), once
// each; what comes later is left to autovacuum. Partitions that lack our settings for autovacuum get them, and audit_log as a whole is analyzed once a day.
//
// One thing at a time, throttled, and without waiting for locks: what can't be done now is left for the next round, which begins with what was tried
// longest ago. Readers and writers are never in its way, nor is it in theirs. It ends with [ErrDeposed] where the term is over.
func Upkeep(ctx context.Context, db *pgxpool.Pool, term Term, now time.Time) ([]Care, error) {
	due, err := dueCare(ctx, db, now)
	if err != nil || len(due) == 0 {
		return nil, err
	}
	u, err := beginUpkeep(ctx, db, term)
	if err != nil {
		return nil, err
	}
	defer u.end(ctx)
	var done []Care
	var failed []error
	for begun := time.Now(); len(due) > 0 && time.Since(begun) < upkeepBegins; due = due[1:] {
		c := due[0]
		err := u.care(ctx, &c)
		switch {
		case err == nil:
			done = append(done, c.Care)
			continue
		case errors.Is(err, ErrDeposed):
			return done, err
		}
		failed = append(failed, fmt.Errorf("%s: %w", c.Care, err))
		if ctx.Err() != nil || u.session.IsClosed() {
			break // what is wrong with one table keeps none of the others from being looked after; this is wrong with all
		}
	}
	return done, errors.Join(failed...)
}

// due is a thing to do.
type due struct {
	Care
	missing []string // of the settings
	bounds  []*time.Time
}

// dueCare lists what is to be done: what is quick first, then what was tried longest ago.
func dueCare(ctx context.Context, db querier, now time.Time) ([]due, error) {
	rows, err := db.Query(ctx, `
		WITH attached AS (
			SELECT b.partition_name AS name, b.lower_bound, b.upper_bound, b.upper_bound + $2::interval <= $1 AS ended, ARRAY(
			           SELECT wanted FROM unnest($3::text[]) WITH ORDINALITY w (wanted, n) WHERE NOT EXISTS (
			               SELECT FROM unnest(c.reloptions) had WHERE split_part(had, '=', 1) = split_part(wanted, '=', 1)) ORDER BY n) AS missing,
			       (SELECT coalesce(max(e.id), 0) FROM audit_partition_event e WHERE e.partition_name = b.partition_name AND e.kind = 'create') AS created
			FROM audit_log_partition_bounds() b JOIN pg_class c ON c.oid = b.relid
			WHERE NOT b.is_detaching AND c.relkind = 'r'
		), things AS (
			SELECT 1 AS rank, name, 'settings' AS kind, missing, lower_bound, upper_bound, NULL::timestamptz AS tried FROM attached WHERE missing <> '{}'
			UNION ALL
			SELECT k.rank, a.name, k.kind, NULL, a.lower_bound, a.upper_bound, t.tried FROM attached a
			CROSS JOIN (VALUES ('analyze', 2), ('vacuum', 4)) k (kind, rank)
			CROSS JOIN LATERAL (
				SELECT max(e.updated_at) AS tried, coalesce(bool_or(e.state = 'done'), false) AS done FROM audit_partition_event e
				WHERE e.partition_name = a.name AND e.kind = k.kind AND e.id > a.created) t
			WHERE a.ended AND NOT t.done
			UNION ALL
			SELECT 3, 'audit_log', 'analyze', NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM attached) AND NOT EXISTS (
				SELECT FROM audit_partition_event e WHERE e.partition_name = 'audit_log' AND e.kind = 'analyze' AND e.updated_at > now() - $4::interval)
		)
		SELECT name, kind, missing, lower_bound, upper_bound FROM things ORDER BY rank, tried NULLS FIRST, upper_bound`,
		now, settling, settings, analyzeParentEvery)
	if err != nil {
		return nil, fmt.Errorf("look what upkeep is due: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (due, error) {
		d := due{bounds: make([]*time.Time, 2)}
		err := row.Scan(&d.Partition, &d.Kind, &d.missing, &d.bounds[0], &d.bounds[1])
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("look what upkeep is due: %w", err)
	}
	return all, nil
}

// upkeep is one round.
type upkeep struct {
	session *pgx.Conn
	term    Term
	pooled  bool // the server's session may be another with each transaction
	only    bool // ANALYZE knows ONLY (Postgres 18)
}

// beginUpkeep takes a connection for it. VACUUM can't run in a transaction, so its settings are the session's, which therefore isn't given back.
func beginUpkeep(ctx context.Context, db *pgxpool.Pool, term Term) (*upkeep, error) {
	conn, err := db.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("take a connection: %w", err)
	}
	u := &upkeep{session: conn.Hijack(), term: term}
	if err := u.prepare(ctx); err != nil {
		u.end(ctx)
		return nil, fmt.Errorf("prepare the session: %w", err)
	}
	return u, nil
}

func (u *upkeep) end(ctx context.Context) {
	_ = u.session.Close(context.WithoutCancel(ctx)) // nothing depends on how it ends
}

// prepare makes the session's statements slow and impatient. A pooler in transaction mode would give the settings to one session and VACUUM to another;
// that there is one is told by the server's process, which isn't the one that we were greeted by.
func (u *upkeep) prepare(ctx context.Context) error {
	var pid uint32
	err := u.session.QueryRow(ctx, `SELECT pg_backend_pid(), current_setting('server_version_num')::int >= 180000`).Scan(&pid, &u.only)
	if err != nil {
		return err
	}
	if u.pooled = pid != u.session.PgConn().PID(); u.pooled {
		return nil
	}
	_, err = u.session.Exec(ctx, strings.ReplaceAll(limits+`; `+upkeepThrottle, "LOCAL ", "")+`; SET lock_timeout = '`+upkeepLock+`'`)
	return err
}

// care does one thing, or says in it why it is left for another round.
func (u *upkeep) care(ctx context.Context, d *due) error {
	table := pgx.Identifier{d.Partition}.Sanitize()
	switch {
	case d.Kind == "settings":
		return u.left(d, u.transaction(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `ALTER TABLE `+table+` SET (`+strings.Join(d.missing, ", ")+`)`); err != nil {
				return err
			}
			return u.record(ctx, tx, d, `INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, term, detail)
				VALUES ($1, $2, $3, $4, $5, jsonb_build_object('why', 'it lacked them', 'settings', $6::text[]))`, d.missing)
		}))
	case d.Partition == "audit_log" && u.only:
		return u.analyze(ctx, d, parentLasts, `ANALYZE ONLY audit_log`)
	case d.Partition == "audit_log": // and each of its partitions: in a transaction it would keep the locks of all
		return u.statement(ctx, d, parentLasts, `ANALYZE audit_log`)
	case d.Kind == "analyze":
		return u.analyze(ctx, d, upkeepLasts, `ANALYZE `+table)
	default:
		// To give empty pages back, VACUUM would lock out readers for a moment.
		return u.statement(ctx, d, upkeepLasts, `VACUUM (FREEZE, TRUNCATE false) `+table)
	}
}

// analyze takes statistics of one table.
func (u *upkeep) analyze(ctx context.Context, d *due, lasts, sql string) error {
	begun := time.Now()
	return u.left(d, u.transaction(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, upkeepThrottle+`; SET LOCAL statement_timeout = '`+lasts+`'`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
		return u.record(ctx, tx, d, `
			INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, term, row_count, detail)
			SELECT $1, $2, $3, $4, $5, nullif(reltuples, -1), jsonb_build_object('seconds', $6::float8)
			FROM pg_class WHERE oid = to_regclass(quote_ident($1))`, time.Since(begun).Seconds())
	}))
}

// statement runs one outside a transaction, with its begin and its end on record. The term is confirmed by both records: a leader that was deposed
// begins nothing, and what it had begun by then its successor does again.
func (u *upkeep) statement(ctx context.Context, d *due, lasts, sql string) error {
	if u.pooled {
		d.Left = throughPooler
		return nil
	}
	begun := time.Now()
	err := u.transaction(ctx, func(tx pgx.Tx) error {
		// What was begun and not done is one record, so that a table that always takes too long doesn't fill the history.
		return u.record(ctx, tx, d, `
			WITH again AS (
				UPDATE audit_partition_event SET updated_at = clock_timestamp(), term = $5
				WHERE partition_name = $1 AND kind = $2 AND state = 'verified' AND `+sinceCreated+` RETURNING id)
			INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, term, state)
			SELECT $1, $2, $3, $4, $5, 'verified' WHERE NOT EXISTS (SELECT FROM again)`)
	})
	if err == nil {
		err = u.bounded(ctx, lasts, sql)
	}
	if err == nil && d.Kind == "vacuum" {
		err = u.frozen(ctx, d)
	}
	if err != nil || d.Left != "" {
		return u.left(d, err)
	}
	return u.transaction(ctx, func(tx pgx.Tx) error {
		return u.record(ctx, tx, d, `
			UPDATE audit_partition_event SET state = 'done', updated_at = clock_timestamp(), term = $5, lower_bound = $3, upper_bound = $4,
				row_count = (SELECT nullif(reltuples, -1) FROM pg_class WHERE oid = to_regclass(quote_ident($1))),
				detail = jsonb_build_object('seconds', $6::float8)
			WHERE partition_name = $1 AND kind = $2 AND state = 'verified' AND `+sinceCreated, time.Since(begun).Seconds())
	})
}

// bounded runs one statement outside of a transaction.
func (u *upkeep) bounded(ctx context.Context, lasts, sql string) error {
	if _, err := u.session.Exec(ctx, `SET statement_timeout = '`+lasts+`'`); err != nil {
		return err
	}
	_, err := u.session.Exec(ctx, sql)
	_, reset := u.session.Exec(ctx, `SET statement_timeout = 0`)
	return errors.Join(err, reset)
}

// frozen looks whether VACUUM left anything: it skips a table that isn't ours with a mere warning, and rows that an old transaction may still need.
func (u *upkeep) frozen(ctx context.Context, d *due) error {
	var all bool
	err := u.session.QueryRow(ctx, `SELECT relallvisible >= relpages FROM pg_class WHERE oid = to_regclass(quote_ident($1))`, d.Partition).Scan(&all)
	if errors.Is(err, pgx.ErrNoRows) {
		d.Left = "it is gone"
		return nil
	}
	if err == nil && !all {
		d.Left = "not everything could be frozen: rows are still arriving, an old transaction (pg_stat_activity, backend_xmin) holds it up, or the table belongs to another role"
	}
	return err
}

// transaction runs what only the leader may do.
func (u *upkeep) transaction(ctx context.Context, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, u.session, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, limits+`; SET LOCAL lock_timeout = '`+upkeepLock+`'`); err != nil {
			return err
		}
		return do(tx)
	})
}

// record writes to audit_partition_event, and confirms the term: it is a transaction's end.
func (u *upkeep) record(ctx context.Context, tx pgx.Tx, d *due, sql string, more ...any) error {
	args := append([]any{d.Partition, d.Kind, d.bounds[0], d.bounds[1], u.term.Number}, more...)
	if _, err := tx.Exec(ctx, sql, args...); err != nil {
		return err
	}
	return u.term.confirm(ctx, tx)
}

// left makes of an error that passes the reason why a thing is left for another round.
func (u *upkeep) left(d *due, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "55P03", "40P01":
		d.Left = lockedByOther
	case "57014":
		d.Left = "it takes longer than it is given in one round, or was canceled"
	case "42P01":
		d.Left = "it is gone"
	default:
		return err
	}
	return nil
}
