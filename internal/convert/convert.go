// Package convert turns the plain audit_log of the replaced system into ours, while it is written to and read. docs/convert.md tells how, and which
// locks each step takes.
//
// Everything it knows is in the database, in the schema audit_convert: a conversion that was stopped at any point goes on where it stood.
package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"auditsink/internal/failpoint"
	"auditsink/internal/indexes"
	"auditsink/internal/postgres"
	"auditsink/migrations"
)

// lockID is "auditcnv" as a number, the session advisory lock of whoever converts, rolls back or drops.
const lockID = 0x6175646974636e76

// Options say what to convert, and how.
type Options struct {
	// URL is the database's, around a pooler: the conversion holds a session's lock.
	URL string
	// Ahead is for how many months after the current one partitions are made.
	Ahead int
	// Indexes are those that the new audit_log gets, full and immediate where it is zero; a conversion that goes on keeps those it began with.
	Indexes indexes.Choice
	// SetAside moves rows whose timestamp no partition is made for to audit_log_set_aside; otherwise they are refused.
	SetAside bool
	// Batch is how many rows one transaction copies; Pause comes after each.
	Batch int
	Pause time.Duration
	// Report is told how far it is, often; nil for nobody.
	Report func(Progress)
}

// Progress is how far a conversion is.
type Progress struct {
	Stage       string
	Month       string // that is being copied, YYYY-MM; empty in other stages
	Done, Total int64  // rows
	Note        string // what it waits for; empty for nothing
}

// Summary is the outcome of [Run].
type Summary struct {
	// Nothing was to be done: audit_log is ours already. Replaced tells that the table it replaced is still there.
	Nothing  bool  `json:"nothing_to_convert"`
	Replaced bool  `json:"replaced_table_kept"`
	Rows     int64 `json:"rows"` // SetAside included
	SetAside int64 `json:"set_aside"`
	Months   int   `json:"months"` // that hold rows
	// Seconds are those of this run; LockSeconds is how long the swap kept readers and writers out.
	Seconds     float64 `json:"seconds"`
	LockSeconds float64 `json:"lock_seconds"`
}

// Refusal lists why a table can't be converted as it is. Nothing was changed for it.
type Refusal struct{ Reasons []string }

// Error lists the reasons, a line each.
func (r *Refusal) Error() string {
	return "audit_log can't be converted as it is:\n  - " + strings.Join(r.Reasons, "\n  - ")
}

// ErrRollingBack means that a rollback has begun, and has to be finished first.
var ErrRollingBack = errors.New("a rollback of the conversion has begun and is not finished: run `auditsink migrate convert --rollback`")

// Stages of a conversion, as they are stored.
const (
	staged   = "staged"   // our tables are being made beside the old one, which nothing has touched yet
	copying  = "copying"  // changes are noted, and months copied
	copied   = "copied"   // all months are
	rollback = "rollback" // being removed
)

// conversion is one at work, on one connection, which has the lock.
type conversion struct {
	Options
	conn     *pgx.Conn
	schema   string // that has audit_log
	ours     bool   // audit_log is ours already
	replaced bool   // the schema audit_replaced is there

	log                 *table
	policies, integrity *table // nil if the replaced system has none
	faults              []string

	// What convert_state holds; stage is empty if there is no conversion yet.
	stage    string
	cap      int64     // ids above it came after changes were noted
	upto     time.Time // timestamps from here on are not copied but set aside
	total    int64
	setAside bool
	columns  string // their signature when it began

	done    int64  // rows copied
	highest int64  // no id above it is in our tables
	access  string // the owner and the grants that ours was given last
}

// Run converts, from the beginning or from where an earlier run stood. It fails with a [*Refusal] where something is in the way, and then has changed nothing
// that [Rollback] doesn't undo.
func Run(ctx context.Context, o Options) (Summary, error) {
	began := time.Now()
	c, err := begin(ctx, o)
	if err != nil {
		return Summary{}, err
	}
	defer c.close(ctx)
	if c.ours {
		return Summary{Nothing: true, Replaced: c.replaced}, nil
	}
	summary, err := c.run(ctx)
	summary.Seconds = time.Since(began).Seconds()
	return summary, c.explain(ctx, err)
}

func (c *conversion) run(ctx context.Context) (Summary, error) {
	for _, step := range []func(context.Context) error{c.prepare, c.note, c.copyMonths, c.makeAhead, c.catchUp, c.reconcile} {
		if err := step(ctx); err != nil {
			return Summary{}, err
		}
	}
	return c.swap(ctx)
}

// begin connects, takes the lock and finds out how things are. It waits while another conversion is at work.
func begin(ctx context.Context, o Options) (*conversion, error) {
	if o.Report == nil {
		o.Report = func(Progress) {}
	}
	c := &conversion{Options: o}
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	if err := c.look(ctx); err != nil {
		c.close(ctx)
		return nil, err
	}
	return c, nil
}

func (c *conversion) close(ctx context.Context) {
	_ = c.conn.Close(context.WithoutCancel(ctx)) // every statement's outcome is known by now
}

// connect opens the one session. The server is to notice soon when we are gone, though it is in the middle of a long statement: the lock would stay.
func (c *conversion) connect(ctx context.Context) error {
	cfg, err := pgx.ParseConfig(c.URL)
	if err != nil {
		return fmt.Errorf("read the database's URL: %w", err)
	}
	cfg.RuntimeParams["application_name"] = "auditsink migrate convert"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	c.conn = conn
	// The texts that rows are compared by depend on some of these; the others may be set for the role or the database, and would end a long statement or let a
	// transaction see the table as it was before it was locked.
	_, err = c.conn.Exec(ctx, `SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET standard_conforming_strings = on; SET quote_all_identifiers = off;
		SET default_transaction_isolation = 'read committed'; SET statement_timeout = 0; SET idle_session_timeout = 0; SET lock_timeout = '10s';
		SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout';
		SET client_connection_check_interval = '2s'; SET jit = off;
		SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3`)
	if err == nil {
		err = c.lock(ctx)
	}
	if err != nil {
		c.close(ctx)
		return fmt.Errorf("prepare the session: %w", err)
	}
	return nil
}

// lock waits for lockID without holding a snapshot meanwhile.
func (c *conversion) lock(ctx context.Context) error {
	for {
		var locked bool
		if err := c.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockID)).Scan(&locked); err != nil || locked {
			return err
		}
		c.Report(Progress{Stage: "waiting", Note: "another conversion, or what is left of one that was killed, holds the lock"})
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// look finds out whether audit_log is to be converted, and how far that is.
func (c *conversion) look(ctx context.Context) error {
	err := migrations.Check(ctx, c.conn)
	var version *migrations.VersionError
	var other *migrations.TableError
	switch {
	case err == nil || errors.As(err, &version):
		c.ours = true
	case !errors.As(err, &other) || other.Partitioned:
		return err
	}
	var there string
	err = c.conn.QueryRow(ctx, `
		SELECT current_schema(), nspname, to_regnamespace('audit_replaced') IS NOT NULL
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = to_regclass('audit_log')`).Scan(&c.schema, &there, &c.replaced)
	if err != nil {
		return fmt.Errorf("look for audit_log: %w", err)
	}
	if _, err := c.conn.Exec(ctx, `SET search_path = pg_catalog, pg_temp`); err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}
	if c.ours {
		return nil
	}
	if there != c.schema {
		return &Refusal{[]string{fmt.Sprintf("it is in the schema %s, while the first of the search path is %s: set search_path in the URL", there, c.schema)}}
	}
	for _, t := range []struct {
		layout layout
		to     **table
	}{{auditLog, &c.log}, {retentionPolicy, &c.policies}, {integrityLog, &c.integrity}} {
		var faults []string
		if *t.to, faults, err = find(ctx, c.conn, c.schema, t.layout); err != nil {
			return err
		}
		c.faults = append(c.faults, faults...)
	}
	return c.load(ctx)
}

// load reads how far an earlier run has come.
func (c *conversion) load(ctx context.Context) error {
	var schema, state bool
	err := c.conn.QueryRow(ctx, `SELECT to_regnamespace('audit_convert') IS NOT NULL, to_regclass('audit_convert.convert_state') IS NOT NULL`).Scan(&schema, &state)
	switch {
	case err != nil:
		return fmt.Errorf("look for an earlier run: %w", err)
	case schema && !state:
		return &Refusal{[]string{"there is a schema audit_convert that this command didn't make: rename or drop it"}}
	case !state:
		return nil
	}
	err = c.conn.QueryRow(ctx, `SELECT stage, cap, upto, total, set_aside, columns FROM audit_convert.convert_state`).
		Scan(&c.stage, &c.cap, &c.upto, &c.total, &c.setAside, &c.columns)
	if err != nil {
		return fmt.Errorf("read how far an earlier run has come: %w", err)
	}
	return nil
}

// brief are the limits of a transaction that keeps others out of the old table. Who waits for a lock has those who come later wait behind it, so it
// gives up soon; and a process that is frozen in it is ended by the server.
const brief = `SET LOCAL lock_timeout = '200ms'; SET LOCAL idle_in_transaction_session_timeout = '3s'`

// holdVacuum takes a lock that no reader or writer minds, but a vacuum does: the server ends an automatic one for it, once it was waited for for deadlock_timeout (1 s). A brief wait
// for a stronger lock would never have that done, and a vacuum of a large table takes hours.
func (c *conversion) holdVacuum(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'; LOCK TABLE `+c.relations()+` IN SHARE UPDATE EXCLUSIVE MODE`)
	return err
}

// relations are the old tables, parted by commas.
func (c *conversion) relations() string {
	var all []string
	for _, t := range c.tables() {
		all = append(all, t.relation)
	}
	return strings.Join(all, ", ")
}

// lockBriefly locks the old tables, or gives up soon: after one wait for all, since those that it has got are held while it waits for the next.
func (c *conversion) lockBriefly(ctx context.Context, tx pgx.Tx, mode string) error {
	if err := c.holdVacuum(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, brief+`; SET LOCAL statement_timeout = '200ms'`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE `+c.relations()+` IN `+mode+` MODE`); err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "57014" {
			return errors.Join(errBusy, err)
		}
		return err
	}
	_, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`)
	return err
}

var errBusy = errors.New("the locks took too long")

// briefly runs a transaction under these limits, again and again, until it gets its locks. Pauses between tries let writers pass.
func (c *conversion) briefly(ctx context.Context, p Progress, mode string, do func(pgx.Tx) error) error {
	for pause := time.Second; ; pause = min(2*pause, 15*time.Second) {
		err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
			if err := c.lockBriefly(ctx, tx, mode); err != nil {
				return err
			}
			return do(tx)
		})
		if !locked(err) {
			return err
		}
		if err := c.waitForLock(ctx, p, pause); err != nil {
			return err
		}
	}
}

// locked tells whether a transaction failed for a lock that it didn't get.
func locked(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return errors.Is(err, errBusy) || ok && (pg.Code == "55P03" || pg.Code == "40P01")
}

// waitForLock says who is in the way, and pauses.
func (c *conversion) waitForLock(ctx context.Context, p Progress, pause time.Duration) error {
	err := c.conn.QueryRow(ctx, `
		SELECT coalesce('waiting for a lock on audit_log, which is held by ' || string_agg(format('pid %s (%s %s, %s, transaction for %s)', pid, usename,
		           nullif(application_name, ''), state, date_trunc('second', now() - xact_start)), '; '), 'waiting for a lock on audit_log')
		FROM (SELECT DISTINCT a.* FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = ANY($1) AND l.granted AND a.pid <> pg_backend_pid()
		      ORDER BY a.xact_start LIMIT 3) holders`, c.oids()).Scan(&p.Note)
	if err != nil {
		return fmt.Errorf("ask who holds audit_log: %w", err)
	}
	c.Report(p)
	return sleep(ctx, pause)
}

// statements asks for statements, one a row, and runs them.
func statements(ctx context.Context, tx pgx.Tx, query string, args ...any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(all) == 0 {
		return err
	}
	_, err = tx.Exec(ctx, strings.Join(all, ";\n"))
	return err
}

// explain names the rows to blame where the database has refused one that came after all were looked at.
func (c *conversion) explain(ctx context.Context, err error) error {
	if err == nil || c.conn.IsClosed() || postgres.Classify(err) != postgres.Row {
		return err
	}
	if _, refusal := c.values(ctx); errors.As(refusal, new(*Refusal)) {
		return errors.Join(refusal, err)
	}
	return err
}

// hit marks a moment at which tests kill the program.
func hit(name string) { failpoint.Hit("convert." + name) }
