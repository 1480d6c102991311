package convert

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"auditsink/migrations"
)

// errBehind means that more came before the swap had its lock than it should do under it: changes of rows, or another grant.
var errBehind = errors.New("too much has changed in the meantime")

// swap puts the new tables in the place of the old ones: one short transaction, tried until it gets its locks.
func (c *conversion) swap(ctx context.Context) (Summary, error) {
	p := Progress{Stage: "swapping", Done: c.done, Total: c.total}
	for pause := time.Second; ; pause = min(2*pause, 15*time.Second) {
		if err := c.keepAccess(ctx); err != nil {
			return Summary{}, err
		}
		if err := c.catchUp(ctx); err != nil {
			return Summary{}, err
		}
		c.Report(p)
		summary, err := c.trySwap(ctx)
		switch {
		case err == nil:
			hit("swapped")
			return summary, nil
		case locked(err):
			err = c.waitForLock(ctx, p, pause)
		case errors.Is(err, errBehind):
			err = nil
		default:
			err = fmt.Errorf("swap the tables: %w", err)
		}
		if err != nil {
			return Summary{}, err
		}
	}
}

func (c *conversion) trySwap(ctx context.Context) (s Summary, err error) {
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return s, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after COMMIT there is nothing to roll back, and before it the error is known
	// Only autovacuum uses the new tables, and it gives way; nobody waits behind us yet.
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '10s'; LOCK TABLE audit_convert.audit_log, audit_convert.audit_log_set_aside IN ACCESS EXCLUSIVE MODE`); err != nil {
		return s, err
	}
	if err := c.lockBriefly(ctx, tx, "ACCESS EXCLUSIVE"); err != nil {
		return s, err
	}
	began := time.Now()
	hit("swap.locked")
	if err := c.replace(ctx, tx); err != nil {
		return s, err
	}
	if s, err = c.record(ctx, tx); err != nil {
		return s, fmt.Errorf("put it on record: %w", err)
	}
	if err := c.move(ctx, tx); err != nil {
		return s, fmt.Errorf("move the tables: %w", err)
	}
	hit("swap.before-commit")
	err = tx.Commit(ctx)
	if pg := (*pgconn.PgError)(nil); err != nil && !errors.As(err, &pg) && !errors.Is(err, pgx.ErrTxCommitRollback) {
		err = c.settle(ctx, err)
	}
	s.LockSeconds, s.Replaced = time.Since(began).Seconds(), true
	return s, err
}

// settle finds out what became of a COMMIT that wasn't answered. It gets the lock once the session that has it is gone, and with it the transaction.
func (c *conversion) settle(ctx context.Context, unanswered error) error {
	c.close(ctx)
	if err := c.connect(ctx); err != nil {
		return errors.Join(unanswered, err)
	}
	if err := c.look(ctx); err != nil {
		return errors.Join(unanswered, err)
	}
	if c.ours {
		return nil
	}
	return fmt.Errorf("%w; nothing was swapped: run the command again", unanswered)
}

// replace makes the new tables hold what the old ones do, now that nobody can change those.
func (c *conversion) replace(ctx context.Context, tx pgx.Tx) error {
	var waiting int
	var noting bool
	err := tx.QueryRow(ctx, `SELECT greatest((SELECT count(*) FROM audit_convert.convert_change), (SELECT count(*) FROM audit_convert.convert_change_integrity)),
		(SELECT count(*) = 2 * $2::int FROM pg_trigger WHERE tgrelid = ANY($1) AND tgname IN ('auditsink_convert_note', 'auditsink_convert_refuse') AND tgenabled = 'A')`,
		c.oids(), len(c.followed())).Scan(&waiting, &noting)
	switch {
	case err != nil:
		return fmt.Errorf("count the changes: %w", err)
	case !noting:
		return errors.New("the triggers that note changes were dropped or disabled, so some may be missing: begin again after `auditsink migrate convert --rollback`")
	case waiting > many:
		return errBehind
	}
	// What others have done to the table since it was looked at would be lost, or go on pointing to the replaced one.
	if found, err := c.inTheWay(ctx); err != nil {
		return err
	} else if len(found) > 0 {
		return &Refusal{found}
	}
	if now, err := c.accessNow(ctx); err != nil {
		return err
	} else if now != c.access {
		return errBehind
	}
	if err := c.apply(ctx, tx, waiting); err != nil {
		return fmt.Errorf("apply the last changes: %w", err)
	}
	if err := c.applyIntegrity(ctx, tx, waiting); err != nil {
		return fmt.Errorf("apply the last changes of audit_integrity_log: %w", err)
	}
	for _, t := range c.tables() {
		now, faults, err := find(ctx, tx, c.schema, t.layout)
		if err != nil {
			return err
		}
		if now == nil || now.signature() != t.signature() || len(faults) > 0 {
			return fmt.Errorf("the columns of %s have changed meanwhile: run the command again, or with --rollback", t.relation)
		}
		to := "audit_convert." + t.name
		if t == c.policies {
			if err := c.copyWhole(ctx, tx, t, to); err != nil {
				return fmt.Errorf("copy %s: %w", t.name, err)
			}
		}
		if t != c.log { // which has its own since its partitions were to take them over
			if err := giveAccess(ctx, tx, "TABLE", t.relation, to); err != nil {
				return fmt.Errorf("give %s the grants of the old one: %w", t.name, err)
			}
		}
	}
	return nil
}

// copyWhole puts the rows of an old table in the place of what the migrations have put into the new one.
func (c *conversion) copyWhole(ctx context.Context, tx pgx.Tx, t *table, to string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`DELETE FROM %s; INSERT INTO %[1]s (%s) SELECT %s FROM %s`, to, t.names(), t.values(), t.relation))
	return err
}

// continueIDs sets the identity to go on after all ids that were given, those of rows that are gone included. Who may use the old sequence may use the new one.
// The old table has moved, and its sequence with it, so nobody takes ids of it now; who waits to do so gets an error rather than an id that is given again.
func (c *conversion) continueIDs(ctx context.Context, tx pgx.Tx, t *table) error {
	var was, is *string
	var owned bool
	moved := "audit_replaced." + t.name
	err := tx.QueryRow(ctx, `SELECT was.name, coalesce(was.owned, false), pg_get_serial_sequence($2, 'id') FROM (SELECT) one LEFT JOIN (
			SELECT format('%I.%I', n.nspname, s.relname) AS name, d.classid = 'pg_class'::regclass AS owned FROM pg_depend d JOIN pg_class s ON s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace
			WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refobjid = $1 AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = $1 AND attname = 'id')
			   OR d.classid = 'pg_attrdef'::regclass AND d.refobjid = s.oid AND d.objid = (SELECT f.oid FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum WHERE f.adrelid = $1 AND a.attname = 'id')
			ORDER BY owned DESC LIMIT 1) was ON true`, t.oid, "audit_convert."+t.name).Scan(&was, &owned, &is)
	if err != nil || is == nil {
		return err
	}
	given := int64(0)
	if was != nil {
		if err := tx.QueryRow(ctx, `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM `+*was).Scan(&given); err != nil {
			return err
		}
		if err := giveAccess(ctx, tx, "SEQUENCE", *was, *is); err != nil {
			return err
		}
		if owned && given > 1 {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`ALTER SEQUENCE %s MAXVALUE %d NO CYCLE`, *was, given)); err != nil {
				return err
			}
		}
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(`SELECT setval('%s', last) FROM (SELECT greatest((SELECT max(id) FROM %s), %d) AS last) ids WHERE last > 0`, *is, moved, given))
	return err
}

// record puts on record what each partition has got, with the sums by which the replaced table can be compared until it is dropped.
func (c *conversion) record(ctx context.Context, tx pgx.Tx) (s Summary, err error) {
	_, err = tx.Exec(ctx, `
		INSERT INTO audit_convert.audit_partition_event (partition_name, kind, lower_bound, upper_bound, row_count, detail)
		SELECT CASE WHEN aside THEN 'audit_log_set_aside' ELSE coalesce(b.partition_name, 'audit_log') END, CASE WHEN aside THEN 'set_aside' ELSE 'convert' END,
		       t.month, CASE WHEN NOT aside THEN b.upper_bound END, t.n, jsonb_build_object('why', 'migrate convert', 'md5_sums', jsonb_build_array(t.a::text, t.b::text))
		FROM audit_convert.convert_tally t LEFT JOIN audit_convert.audit_log_partition_bounds() b ON b.lower_bound = t.month AND NOT t.aside
		WHERE t.n <> 0 ORDER BY t.aside, t.month`)
	if err != nil {
		return s, err
	}
	err = tx.QueryRow(ctx, `SELECT coalesce(sum(n), 0)::bigint, coalesce(sum(n) FILTER (WHERE aside), 0)::bigint, count(*) FILTER (WHERE NOT aside AND n > 0)
		FROM audit_convert.convert_tally`).Scan(&s.Rows, &s.SetAside, &s.Months)
	return s, err
}

// move moves the old tables, and functions whose names ours need, out of the way and ours into their place, and removes what the conversion needed.
func (c *conversion) move(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `CREATE SCHEMA audit_replaced`); err != nil {
		return err
	}
	for _, t := range c.followed() {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`DROP TRIGGER auditsink_convert_note ON %s; DROP TRIGGER auditsink_convert_refuse ON %[1]s`, t.relation)); err != nil {
			return err
		}
	}
	for _, t := range c.tables() {
		if _, err := tx.Exec(ctx, `ALTER TABLE `+t.relation+` SET SCHEMA audit_replaced`); err != nil {
			return err
		}
		if err := c.continueIDs(ctx, tx, t); err != nil {
			return fmt.Errorf("continue the ids of %s: %w", t.name, err)
		}
	}
	err := statements(ctx, tx, `SELECT format('ALTER ROUTINE %s SET SCHEMA audit_replaced', p.oid::regprocedure) FROM pg_proc p
		WHERE p.pronamespace = $1::text::regnamespace AND p.proname IN (SELECT proname FROM pg_proc WHERE pronamespace = 'audit_convert'::regnamespace)`, quote(c.schema))
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DROP TABLE audit_convert.convert_state, audit_convert.convert_month, audit_convert.convert_tally, audit_convert.convert_change, audit_convert.convert_change_integrity;
		DROP FUNCTION audit_convert.convert_note(), audit_convert.convert_note_integrity(), audit_convert.convert_refuse();
		DO $$ BEGIN IF NOT EXISTS (SELECT FROM audit_convert.audit_log_set_aside) THEN DROP TABLE audit_convert.audit_log_set_aside; END IF; END $$`); err != nil {
		return err
	}
	// Indexes, constraints and sequences of ids move with their tables. The functions' fixed search path names the schema.
	err = statements(ctx, tx, `
		SELECT format('ALTER %s %s SET SCHEMA %s', CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END, c.oid::regclass, $1::text)
		FROM pg_class c WHERE relnamespace = 'audit_convert'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
		  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
		UNION ALL
		SELECT format('ALTER ROUTINE %s SET search_path = %s; ALTER ROUTINE %1$s SET SCHEMA %3$s', p.oid::regprocedure, replace(substr(setting, length('search_path=') + 1), 'audit_convert', $1::text), $1::text)
		FROM pg_proc p, unnest(p.proconfig) setting WHERE p.pronamespace = 'audit_convert'::regnamespace AND setting LIKE 'search_path=%'
		UNION ALL
		SELECT format('ALTER ROUTINE %s SET SCHEMA %s', p.oid::regprocedure, $1::text)
		FROM pg_proc p WHERE p.pronamespace = 'audit_convert'::regnamespace AND NOT EXISTS (SELECT FROM unnest(p.proconfig) setting WHERE setting LIKE 'search_path=%')
		UNION ALL
		SELECT format('ALTER TYPE %s SET SCHEMA %s', t.oid::regtype, $1::text) FROM pg_type t LEFT JOIN pg_class r ON r.oid = t.typrelid
		WHERE t.typnamespace = 'audit_convert'::regnamespace AND (t.typtype IN ('e', 'd') OR r.relkind = 'c')`, quote(c.schema))
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`DROP SCHEMA audit_convert RESTRICT; SET LOCAL search_path = %s`, quote(c.schema))); err != nil {
		return err
	}
	return migrations.Check(ctx, tx)
}
