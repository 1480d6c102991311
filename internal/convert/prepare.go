package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/indexes"
	"auditsink/migrations"
)

// staging makes what a conversion keeps its state in. Functions are called by triggers of the old table, hence by any role that writes to it:
// they act as their owner, and look up nothing by a search path of the caller's.
const staging = `
	CREATE SCHEMA audit_convert;
	CREATE TABLE audit_convert.convert_state (
		one boolean PRIMARY KEY DEFAULT true CHECK (one), stage text NOT NULL, cap bigint NOT NULL, upto timestamptz NOT NULL, total bigint NOT NULL, set_aside boolean NOT NULL, columns text NOT NULL,
		aside_done boolean NOT NULL DEFAULT false, started_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE audit_convert.convert_month (
		lower timestamptz PRIMARY KEY, upper timestamptz NOT NULL, name text NOT NULL, copied bigint NOT NULL DEFAULT 0,
		last_timestamp timestamptz NOT NULL, last_id bigint NOT NULL, loaded boolean NOT NULL DEFAULT false, attached boolean NOT NULL DEFAULT false);
	CREATE TABLE audit_convert.convert_tally (
		month timestamptz, aside boolean, n numeric NOT NULL, a numeric NOT NULL, b numeric NOT NULL, PRIMARY KEY (month, aside));
	CREATE FUNCTION audit_convert.convert_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RAISE EXCEPTION '% is being converted to auditsink''s and can''t be truncated: use DELETE, or end the conversion with: auditsink migrate convert --rollback', TG_TABLE_NAME
			USING ERRCODE = 'object_not_in_prerequisite_state';
	END $$;
	REVOKE ALL ON FUNCTION audit_convert.convert_refuse() FROM PUBLIC`

// noting makes the table and the trigger function by which the changes of one table are noted; %s tells it from another.
const noting = `
	CREATE TABLE audit_convert.convert_change%[1]s (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id bigint NOT NULL);
	CREATE FUNCTION audit_convert.convert_note%[1]s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	BEGIN
		IF TG_OP = 'DELETE' THEN
			INSERT INTO audit_convert.convert_change%[1]s (id) VALUES (OLD.id);
		ELSIF TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN
			INSERT INTO audit_convert.convert_change%[1]s (id) VALUES (OLD.id), (NEW.id);
		ELSE
			INSERT INTO audit_convert.convert_change%[1]s (id) VALUES (NEW.id);
		END IF;
		RETURN NULL;
	END $$;
	REVOKE ALL ON FUNCTION audit_convert.convert_note%[1]s() FROM PUBLIC`

// prepare makes the new tables in a schema of their own. Nothing of the old table's is touched yet.
func (c *conversion) prepare(ctx context.Context) error {
	switch {
	case c.stage == rollback:
		return ErrRollingBack
	case c.stage == "":
		c.setAside = c.SetAside
		plan, err := c.preflight(ctx)
		if err != nil {
			return err
		}
		c.Report(Progress{Stage: "making the new tables", Total: plan.Rows})
		c.total, c.columns = plan.Rows, c.log.signature()
		err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
			for _, sql := range []string{staging, fmt.Sprintf(noting, ""), fmt.Sprintf(noting, "_integrity")} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, `INSERT INTO audit_convert.convert_state (stage, cap, upto, total, set_aside, columns) VALUES ($1, 0, now(), $2, $3, $4)`,
				staged, c.total, c.setAside, c.columns)
			return err
		})
		if err != nil {
			return fmt.Errorf("make the schema audit_convert: %w", err)
		}
		c.stage = staged
		hit("staged")
	case c.columns != c.log.signature() || len(c.faults) > 0:
		return &Refusal{append(c.faults, "it is not what it was when the conversion began: undo what was changed, or begin again after `auditsink migrate convert --rollback`")}
	}
	if c.SetAside && !c.setAside {
		if _, err := c.conn.Exec(ctx, `UPDATE audit_convert.convert_state SET set_aside = true`); err != nil {
			return fmt.Errorf("allow to set rows aside: %w", err)
		}
		c.setAside = true
	}
	// Again in every run, which may be of a newer binary than the one before.
	if _, err := migrations.Apply(ctx, searching(c.URL, "audit_convert")); err != nil {
		return fmt.Errorf("in the schema audit_convert: %w", err)
	}
	hit("migrated")
	if c.Indexes == (indexes.Choice{}) {
		return nil
	}
	err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = audit_convert`); err != nil {
			return err
		}
		return indexes.Choose(ctx, tx, c.Indexes)
	})
	if err != nil && !errors.Is(err, indexes.ErrNotEmpty) {
		return fmt.Errorf("in the schema audit_convert: %w", err)
	}
	return nil
}

// searching returns a connection URL or key=value string with its search_path replaced: the last of a name holds.
func searching(url, schema string) string {
	separator := " "
	if strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://") {
		separator = "?"
		if strings.Contains(url, "?") {
			separator = "&"
		}
	}
	return url + separator + "search_path=" + schema
}

// access gives a table of ours the owner and the grants of the one it replaces, and nothing else; sequences of the ids too.
const access = `
	SELECT format('ALTER TABLE %s OWNER TO %I', new, pg_get_userbyid(o.relowner)) FROM pg_class o, pg_class n
	WHERE o.oid = old AND n.oid = new AND o.relkind <> 'S' AND o.relowner <> n.relowner
	UNION ALL
	SELECT DISTINCT format('REVOKE ALL ON %s %s FROM %s', noun, new, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
	FROM (SELECT relacl FROM pg_class WHERE oid = new UNION ALL SELECT attacl FROM pg_attribute WHERE attrelid = new) n, aclexplode(n.relacl) a
	UNION ALL
	SELECT DISTINCT format('GRANT %s ON %s %s TO %s%s', a.privilege_type, noun, new, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
	                       CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
	FROM pg_class o, aclexplode(coalesce(o.relacl, acldefault(CASE o.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, o.relowner))) a WHERE o.oid = old
	UNION ALL
	SELECT DISTINCT format('GRANT %s (%I) ON TABLE %s TO %s%s', a.privilege_type, t.attname, new, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
	                       CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
	FROM pg_attribute t, aclexplode(t.attacl) a WHERE t.attrelid = old AND t.attnum > 0 AND NOT t.attisdropped`

// giveAccess runs what access says. Old and new are names with their schemas, quoted; noun is TABLE or SEQUENCE.
func giveAccess(ctx context.Context, tx pgx.Tx, noun, from, to string) error {
	query := strings.NewReplacer("noun", "$1::text", "old", "$2::text::regclass", "new", "$3::text::regclass").Replace(access)
	return statements(ctx, tx, query, noun, from, to)
}

// keepAccess gives all that is to be audit_log the owner and the grants of the old table once more, since they may be others than when it was given them.
func (c *conversion) keepAccess(ctx context.Context) error {
	now, err := c.accessNow(ctx)
	if err != nil || now == c.access {
		return err
	}
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		all, err := c.list(ctx, `SELECT format('audit_convert.%I', relname) FROM pg_class WHERE relnamespace = 'audit_convert'::regnamespace AND relkind IN ('r', 'p') AND relname ~ '^audit_log(_|$)'`)
		if err != nil {
			return err
		}
		for _, to := range all {
			if err := giveAccess(ctx, tx, "TABLE", c.log.relation, to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("give the new table the owner and the grants that the old one has now: %w", err)
	}
	c.access = now
	return nil
}

// accessNow is a text of the owner and the grants of the old audit_log.
func (c *conversion) accessNow(ctx context.Context) (now string, err error) {
	err = c.conn.QueryRow(ctx, `SELECT concat_ws(' ', relowner, relacl, (SELECT string_agg(concat_ws(' ', attnum, attacl), ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = oid AND attacl IS NOT NULL))
		FROM pg_class WHERE oid = $1`, c.log.oid).Scan(&now)
	if err != nil {
		return "", fmt.Errorf("read the owner and the grants of %s: %w", c.log.relation, err)
	}
	return now, nil
}

// followed are the tables whose changes are noted, by what tells their notes apart.
func (c *conversion) followed() map[string]*table {
	all := map[string]*table{"": c.log}
	if c.integrity != nil {
		all["_integrity"] = c.integrity
	}
	return all
}

// note lets changes of the old table be noted from now on. No row that was there before is missed, since CREATE TRIGGER waits until all who have written
// are through; ids above cap came afterwards, so their rows need not be copied. Triggers fire for a replication's writes too (ALWAYS).
func (c *conversion) note(ctx context.Context) error {
	if c.stage != staged {
		return nil
	}
	// Again, since the names of all that is ours are known now.
	found, err := c.inTheWay(ctx)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return &Refusal{found}
	}
	p := Progress{Stage: "beginning to note changes", Total: c.total}
	c.Report(p)
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS audit_convert.audit_log_set_aside (LIKE audit_convert.audit_log, why text NOT NULL, set_aside_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id));
			ALTER TABLE audit_convert.audit_log_set_aside ALTER recorded_at SET DEFAULT now();
			COMMENT ON TABLE audit_convert.audit_log_set_aside IS 'Rows of the replaced system whose timestamps no partition is made for'`)
		if err != nil {
			return err
		}
		// An owner must be allowed to have tables in a schema to be given one there.
		err = statements(ctx, tx, `SELECT DISTINCT format('GRANT USAGE, CREATE ON SCHEMA audit_convert TO %I', pg_get_userbyid(relowner)) FROM pg_class WHERE oid = ANY($1)
			AND pg_get_userbyid(relowner) <> current_user`, c.oids())
		if err != nil {
			return err
		}
		for _, to := range []string{"audit_log", "audit_log_set_aside"} {
			if err := giveAccess(ctx, tx, "TABLE", c.log.relation, "audit_convert."+to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("give the new table the owner and the grants of the old one: %w", err)
	}
	hit("granted")
	err = c.briefly(ctx, p, "SHARE ROW EXCLUSIVE", func(tx pgx.Tx) error {
		for suffix, t := range c.followed() {
			_, err := tx.Exec(ctx, fmt.Sprintf(`
				CREATE TRIGGER auditsink_convert_note AFTER INSERT OR UPDATE OR DELETE ON %[1]s FOR EACH ROW EXECUTE FUNCTION audit_convert.convert_note%[2]s();
				CREATE TRIGGER auditsink_convert_refuse BEFORE TRUNCATE ON %[1]s FOR EACH STATEMENT EXECUTE FUNCTION audit_convert.convert_refuse();
				ALTER TABLE %[1]s ENABLE ALWAYS TRIGGER auditsink_convert_note, ENABLE ALWAYS TRIGGER auditsink_convert_refuse`, t.relation, suffix))
			if err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, fmt.Sprintf(`UPDATE audit_convert.convert_state SET stage = $1, cap = (SELECT coalesce(max(id), 0) FROM %s), upto = now() + interval '%s' RETURNING cap, upto`,
			c.log.relation, future), copying).Scan(&c.cap, &c.upto)
	})
	if err != nil {
		return fmt.Errorf("make the triggers that note changes: %w", err)
	}
	c.stage = copying
	hit("noting")
	return nil
}
