package indexes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"auditsink/internal/failpoint"
)

// ErrNoTable means that a table is gone, or never was.
var ErrNoTable = errors.New("there is no such table")

// NameTakenError says that something else has the name that an index is to have.
type NameTakenError struct {
	Name string // with the schema, as SQL has it
	What string // that it is
}

func (e *NameTakenError) Error() string {
	return fmt.Sprintf("index %s can't be built: %s has its name; rename that, or drop it", e.Name, e.What)
}

// SessionSettings are for a session that builds indexes. A build leaves the other cores to ingest, and what the role or the database allows other statements and transactions doesn't
// end it: it would begin again for ever. transaction_timeout is of Postgres 17.
const SessionSettings = `SET max_parallel_maintenance_workers = 0; SET statement_timeout = 0;
	SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'`

// Missing returns those of the given indexes that a table lacks, in their order: by definition, and whatever the name of what it has. The table is audit_log itself or another table of
// its schema, by its bare name. An index that belongs to one of audit_log doesn't count for a partition, since it goes with that; nor does one that isn't valid.
// The error is [ErrNoTable] where the table is gone.
func Missing(ctx context.Context, db querier, table string, wanted []Index) ([]Index, error) {
	t, err := look(ctx, db, table)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(wanted), t.has), nil
}

// Create gives a partition, by its bare name, an index of its own by CREATE INDEX CONCURRENTLY, which keeps neither ingest nor readers waiting. It returns false where the partition had one of that
// definition. What an interrupted build of it left is dropped first, and an index of audit_log's index that has its name is renamed.
//
// The connection must be in no transaction. The build waits for transactions that use the partition, and at its end for all of the database that began earlier (PostgreSQL, CREATE INDEX,
// Building Indexes Concurrently); meanwhile it is in nobody's way but that of VACUUM and DDL on the partition. The session's lock_timeout bounds each wait, and statement_timeout the whole; what either ends, the next
// call does again. The error is a [NameTakenError] where another object has the name, and [ErrNoTable] where the partition is gone.
func Create(ctx context.Context, conn *pgx.Conn, table string, i Index) (built bool, err error) {
	name := i.Name(table)
	for {
		t, err := look(ctx, conn, table)
		if err != nil || t.has(i) {
			return false, err
		}
		left := slices.IndexFunc(t.indexes, func(p present) bool { return !p.Valid && !p.Attached && (p.Name == name || p.is(i)) })
		if left < 0 {
			if err := t.free(ctx, conn, i); err != nil {
				return false, err
			}
			failpoint.Hit("indexes.build.before")
			sql := `CREATE INDEX CONCURRENTLY ` + pgx.Identifier{name}.Sanitize() + ` ON ` + t.quoted + ` ` + i.definition()
			if _, err := conn.Exec(ctx, sql); err != nil {
				return false, fmt.Errorf("build index %s: %w", name, err)
			}
			failpoint.Hit("indexes.build.after")
			return true, nil
		}
		if err := t.dropLeftover(ctx, conn, t.indexes[left].Name); err != nil {
			return false, fmt.Errorf("drop what is left of index %s: %w", t.indexes[left].Name, err)
		}
	}
}

// relation is a table and the indexes that it has.
type relation struct {
	schema, name string
	quoted       string
	upper        time.Time // of a partition's interval; zero for none
	attached     bool      // it is a partition
	indexes      []present
}

// present is an index that a table has.
type present struct {
	Name       string
	Definition string // as [Index] has it; empty where it could be none of ours, such as a unique one
	Valid      bool
	Attached   bool // it belongs to an index of audit_log
}

func (p present) is(i Index) bool { return p.Definition == i.definition() }

// has tells whether the table has an index of its own by definition.
func (r relation) has(i Index) bool {
	return slices.ContainsFunc(r.indexes, func(p present) bool { return p.Valid && !p.Attached && p.is(i) })
}

// look reads which indexes a table in audit_log's schema has.
func look(ctx context.Context, db querier, table string) (relation, error) {
	all, err := read(ctx, db, `SELECT c.oid, NULL::timestamptz, false FROM pg_class c WHERE c.relname = $1 AND c.relkind IN ('r', 'p') AND c.relnamespace = `+ourSchema, table)
	switch {
	case err != nil:
		return relation{}, fmt.Errorf("read the indexes of %s: %w", table, err)
	case len(all) == 0:
		return relation{}, fmt.Errorf("read the indexes of %s: %w", table, ErrNoTable)
	}
	return all[0], nil
}

const ourSchema = `(SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass)`

// survey reads which indexes audit_log has, which its partitions, and which the tables that were partitions and may come back, in this order.
func survey(ctx context.Context, db querier) (parent relation, tables []relation, err error) {
	all, err := read(ctx, db, `
		SELECT 'audit_log'::regclass::oid, NULL::timestamptz, false
		UNION ALL
		SELECT b.relid, b.upper_bound, true FROM audit_log_partition_bounds() b JOIN pg_class c ON c.oid = b.relid WHERE c.relkind = 'r' AND c.relnamespace = `+ourSchema+`
		UNION ALL
		SELECT c.oid, e.upper_bound, false FROM pg_class c JOIN LATERAL (
			SELECT e.upper_bound, e.state FROM audit_partition_event e WHERE e.partition_name = c.relname AND e.kind = 'drop' ORDER BY e.id DESC LIMIT 1) e ON true
		WHERE c.relkind = 'r' AND NOT c.relispartition AND c.relnamespace = `+ourSchema+` AND e.state IN ('verified', 'detached', 'restored', 'refused')`)
	if err != nil {
		return relation{}, nil, fmt.Errorf("read the indexes of audit_log: %w", err)
	}
	return all[0], all[1:], nil
}

// read reads which indexes the tables have that are chosen by SQL with their OID, their upper bound and whether they are attached.
func read(ctx context.Context, db querier, chosen string, args ...any) ([]relation, error) {
	rows, err := db.Query(ctx, `
		WITH chosen (oid, upper_bound, attached) AS (`+chosen+`)
		SELECT n.nspname, t.relname, c.upper_bound, c.attached, i.relname, coalesce(substr(d.text, strpos(d.text, ' USING ') + 1), ''), coalesce(x.indisvalid, false), coalesce(i.relispartition, false)
		FROM chosen c JOIN pg_class t ON t.oid = c.oid JOIN pg_namespace n ON n.oid = t.relnamespace
		LEFT JOIN (pg_index x JOIN pg_class i ON i.oid = x.indexrelid) ON x.indrelid = t.oid
		LEFT JOIN LATERAL pg_get_indexdef(x.indexrelid) d (text) ON NOT x.indisunique
		ORDER BY t.relkind = 'p' DESC, c.attached DESC, c.upper_bound, t.relname, i.relname`, args...)
	if err != nil {
		return nil, err
	}
	var all []relation
	var r relation
	var name *string
	var upper *time.Time
	var p present
	_, err = pgx.ForEachRow(rows, []any{&r.schema, &r.name, &upper, &r.attached, &name, &p.Definition, &p.Valid, &p.Attached}, func() error {
		if len(all) == 0 || all[len(all)-1].name != r.name {
			r.quoted, r.upper = r.of(r.name), time.Time{}
			if upper != nil {
				r.upper = *upper
			}
			all = append(all, r)
		}
		if name != nil {
			p.Name = *name
			last := &all[len(all)-1]
			last.indexes = append(last.indexes, p)
		}
		return nil
	})
	return all, err
}

// session is a connection or a transaction.
type session interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// of is the quoted name of what is in the table's schema.
func (r relation) of(name string) string { return pgx.Identifier{r.schema, name}.Sanitize() }

// free sees that nothing has the name that an index is to have. An index of audit_log's index that has it keeps working by another name.
func (r relation) free(ctx context.Context, db session, i Index) error {
	name := i.Name(r.name)
	if slices.ContainsFunc(r.indexes, func(p present) bool { return p.Attached && p.Name == name }) {
		other := i.inherited(r.name)
		if _, err := db.Exec(ctx, `ALTER INDEX `+r.of(name)+` RENAME TO `+pgx.Identifier{other}.Sanitize()); err != nil {
			return fmt.Errorf("rename index %s, which belongs to audit_log's: %w", name, err)
		}
		return nil
	}
	var what string
	err := db.QueryRow(ctx, `
		SELECT coalesce('an index on ' || (SELECT x.indrelid::regclass FROM pg_index x WHERE x.indexrelid = c.oid) || ' with another definition', 'an object of another kind')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = $1 AND n.nspname = $2`, name, r.schema).Scan(&what)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look who has the name %s: %w", name, err)
	default:
		return &NameTakenError{Name: r.of(name), What: what}
	}
}

// dropLeftover drops an invalid index of the table. One that somebody is building is invalid as well: they hold a lock until it is done, so what is still invalid when we have got that lock is nobody's,
// unless the transaction that made it valid was about to end: a build gives up its lock before that (DefineIndex in PostgreSQL's src/backend/commands/indexcmds.c). So those that were under way then are waited for.
func (r relation) dropLeftover(ctx context.Context, conn *pgx.Conn, name string) error {
	const invalid = `SELECT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE NOT x.indisvalid AND c.relname = $1 AND n.nspname = $2)`
	var left bool
	var snapshot string
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE `+r.quoted+` IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
			return err
		}
		return tx.QueryRow(ctx, invalid+`, pg_current_snapshot()::text`, name, r.schema).Scan(&left, &snapshot)
	})
	if err != nil || !left {
		return err
	}
	if err := outlast(ctx, conn, snapshot); err != nil {
		return err
	}
	if err := conn.QueryRow(ctx, invalid, name, r.schema).Scan(&left); err != nil || !left {
		return err
	}
	_, err = conn.Exec(ctx, `DROP INDEX CONCURRENTLY IF EXISTS `+r.of(name))
	return err
}

// outlast waits until the transactions have ended that were under way in a snapshot, ten minutes at most.
func outlast(ctx context.Context, conn *pgx.Conn, snapshot string) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 10*time.Millisecond, time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		var some bool
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_snapshot_xip($1::text::pg_snapshot) x WHERE pg_xact_status(x) = 'in progress')`, snapshot).Scan(&some)
		switch {
		case err != nil:
			return struct{}{}, backoff.Permanent(fmt.Errorf("wait for the transactions under way: %w", err))
		case some:
			return struct{}{}, errUnderWay
		}
		return struct{}{}, nil
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(patience))
	return err
}

// errUnderWay means that one of them may be about to finish an index.
var errUnderWay = errors.New("a transaction that writes has lasted for ten minutes, and may be about to finish the index: end it (pg_stat_activity)")
