package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"auditsink/internal/postgres"
	"auditsink/partitions"
)

func newPartitionsHoldCommand() *cobra.Command {
	var from, until moment
	var organization, correlation, reason string
	var everything, list, released, asJSON bool
	c := &cobra.Command{
		Use:   "hold [--from T] [--until T] [--organization O] [--correlation-id C] --reason TEXT",
		Short: "Put events under a legal hold, so that retention removes none of them; or list the holds",
		Long: `hold puts events under a legal hold: until it is released, nothing that matches all the criteria given is removed, neither partitions
that hold such events nor these events one by one. A hold by time alone keeps every partition that its range overlaps.

It holds from the moment the command returns. Where something is being removed right now, it waits for that.

--list tells the holds there are, and with --released also those that were.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			criteria := 0
			hold := partitions.Hold{From: from.UTC(), Until: until.UTC(), Reason: strings.TrimSpace(reason)}
			for name, target := range map[string]**string{"organization": &hold.Organization, "correlation-id": &hold.Correlation} {
				flag := cmd.Flags().Lookup(name)
				if !flag.Changed {
					continue
				}
				criteria++
				value := flag.Value.String()
				if value == "" || strings.ToValidUTF8(value, "") != value || len([]rune(value)) > 255 {
					return &usageError{fmt.Errorf("--%s is empty, not UTF-8, or has more than 255 characters: no event has that", name)}
				}
				*target = &value
			}
			if !from.IsZero() || !until.IsZero() {
				criteria++
			}
			switch {
			case list && (criteria > 0 || everything || hold.Reason != ""):
				return &usageError{errors.New("--list lists all holds; it goes with --released and --json only")}
			case list:
				return listHolds(cmd, released, asJSON)
			case released:
				return &usageError{errors.New("--released goes with --list")}
			case (criteria > 0) == everything:
				return &usageError{errors.New("what shall be held? Give --from, --until, --organization or --correlation-id, or else --everything")}
			case !from.IsZero() && !until.IsZero() && !from.Before(until.Time):
				return &usageError{errors.New("--from is not before --until, and no event is in between")}
			}
			if err := needReason(hold.Reason); err != nil {
				return err
			}
			return placeHold(cmd, hold, asJSON)
		},
	}
	flags := c.Flags()
	flags.Var(&from, "from", "events with a timestamp from then on: RFC 3339, or a duration back from now, such as 2h")
	flags.Var(&until, "until", "events with a timestamp before then, likewise")
	flags.StringVar(&organization, "organization", "", "events of this organization ID")
	flags.StringVar(&correlation, "correlation-id", "", "events with this correlation ID")
	flags.BoolVar(&everything, "everything", false, "all events there are and will be")
	flags.StringVar(&reason, "reason", "", "why (required): it goes on record")
	flags.BoolVar(&list, "list", false, "list the holds instead")
	flags.BoolVar(&released, "released", false, "with --list: also those that were released")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newPartitionsReleaseCommand() *cobra.Command {
	reason, asJSON := "", false
	c := &cobra.Command{
		Use:   "release ID --reason TEXT",
		Short: "End a legal hold",
		Long: `release ends a legal hold, by its ID (auditsink partitions hold --list). What it alone has kept goes with the leader's next rounds, where
AUDITSINK_RETENTION_ENFORCE is on. The hold stays on record, with who released it, when and why. One that was released before is noted and left.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return &usageError{fmt.Errorf("%q is no ID of a hold: they are whole numbers, see `auditsink partitions hold --list`", args[0])}
			}
			reason = strings.TrimSpace(reason)
			if err := needReason(reason); err != nil {
				return err
			}
			_, pool, err := openPartitions(cmd.Context())
			if err != nil {
				return err
			}
			defer pool.Close()
			hold, err := partitions.ReleaseHold(cmd.Context(), pool.Pool, id, reason, operator())
			if errors.Is(err, partitions.ErrReleased) {
				cmd.PrintErrf("note: hold %d was released before\n", id)
			} else if err != nil {
				return postgres.Explain(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), hold)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "hold %d was released at %s by %s: %s\n", hold.ID, hold.ReleasedAt.Format(time.RFC3339), hold.ReleasedBy, hold.ReleaseReason)
			return err
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required): it goes on record")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newPartitionsRestoreCommand() *cobra.Command {
	reason, asJSON := "", false
	c := &cobra.Command{
		Use:   "restore NAME --reason TEXT",
		Short: "Take a partition back that is on its way out, and keep it",
		Long: `restore takes a partition back whose retention has begun: it is attached again, with all its rows and no scan of them, and its range is put under
a legal hold with the reason, or the next round would retire it anew. Release the hold to let it go after all.

It works until AUDITSINK_RETENTION_GRACE_DAYS after the partition was detached. What was dropped since, only a backup has.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			reason = strings.TrimSpace(reason)
			if err := needReason(reason); err != nil {
				return err
			}
			cfg, pool, err := openPartitions(cmd.Context())
			if err != nil {
				return err
			}
			defer pool.Close()
			restored, err := partitions.Restore(cmd.Context(), pool.Pool, args[0], reason, operator())
			if err != nil {
				return postgres.Explain(err)
			}
			invalidateCache(cmd.Context(), cmd, cfg, pool)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), restored)
			}
			line := fmt.Sprintf("%s is attached, and not on its way out: nothing was changed", args[0])
			if restored.Hold != nil {
				line = fmt.Sprintf("%s is attached again, and held by legal hold %d", args[0], restored.Hold.ID)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
			return err
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required): it goes on record")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// needReason requires a reason for the record.
func needReason(reason string) error {
	switch {
	case reason == "":
		return &usageError{errors.New("--reason is missing: say why, for the record")}
	case strings.ToValidUTF8(reason, "") != reason:
		return &usageError{errors.New("the reason given is not UTF-8")}
	default:
		return nil
	}
}

func placeHold(cmd *cobra.Command, hold partitions.Hold, asJSON bool) error {
	_, pool, err := openPartitions(cmd.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	placed, err := partitions.PlaceHold(cmd.Context(), pool.Pool, hold, operator())
	if err != nil {
		return postgres.Explain(err)
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), placed)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "hold %d is placed; it ends with `auditsink partitions release %[1]d --reason TEXT`\n", placed.ID)
	return err
}

func listHolds(cmd *cobra.Command, released, asJSON bool) error {
	_, pool, err := openPartitions(cmd.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	holds, err := partitions.Holds(cmd.Context(), pool.Pool, released)
	if err != nil {
		return postgres.Explain(err)
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), listed(holds))
	}
	return printHolds(cmd.OutOrStdout(), holds)
}

func printHolds(out io.Writer, holds []partitions.Hold) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOLD\tFROM\tUNTIL\tORGANIZATION\tCORRELATION ID\tPLACED\tBY\tREASON\tRELEASED") //nolint:errcheck // Flush tells
	for _, h := range holds {
		ended := "-"
		if !h.ReleasedAt.IsZero() {
			ended = fmt.Sprintf("%s by %s: %q", h.ReleasedAt.Format(time.RFC3339), h.ReleasedBy, h.ReleaseReason)
		}
		//nolint:errcheck // Flush tells
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%q\t%s\n", h.ID, heldText(h.From), heldText(h.Until), criterionText(h.Organization), criterionText(h.Correlation),
			h.PlacedAt.Format(time.RFC3339), h.PlacedBy, h.Reason, ended)
	}
	return w.Flush()
}

func heldText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339Nano)
}

// criterionText quotes what may hold anything, so that a terminal isn't at its mercy.
func criterionText(criterion *string) string {
	if criterion == nil {
		return "-"
	}
	return strconv.Quote(*criterion)
}
