package sample

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
)

// clinic is where events happen. All text in this file goes into JSON as it
// is, so none of it may need escaping.
type clinic struct{ organization, name string }

var clinics = [...]clinic{
	{"org-clinic-lindenhof", "Praxis am Lindenhof, Zürich"},
	{"org-clinic-riverside", "Riverside Family Medicine"},
	{"org-clinic-st-lucia", "Clínica Santa Lucía, Bogotá"},
	{"org-hospital-northgate", "Northgate General Hospital"},
	{"org-clinic-oakhill", "Oak Hill Pediatrics"},
	{"org-lab-meridian", "Meridian Diagnostics"},
	{"org-clinic-harbour", "Harbour Street Dental"},
	{"org-clinic-saint-denis", "Centre de santé Saint-Denis"},
	{"org-hospital-kanda", "神田総合病院"},
	{"org-clinic-maple", "Maple Avenue Cardiology"},
	{"org-hospice-willow", "Willow House Hospice"},
	{"org-pharmacy-central", "Central Pharmacy"},
}

// actor is who acts in a scenario.
type actor uint8

const (
	staff actor = iota
	patient
	system
	unknown // a name typed at the sign-in page
)

// scenario is one kind of event.
type scenario struct {
	weight    int // how often, relative to the others
	action    string
	actor     actor
	anonymous bool // no organization is known unless it succeeds
	resource  string
	prefix    string // of the resource's id
	class     string
	retention string // as JSON: existing producers send names or a number of days
	success   string // outcome description
	failures  int    // per cent
	failure   []string
	purpose   string
}

var (
	denied     = []string{"Access denied: no treatment relationship with the patient", "Access denied: role lacks the permission", "Record is locked by another user"}
	badLogin   = []string{"Invalid password", "Account locked after 5 attempts", "One-time code expired", "Unknown user name"}
	rxRejected = []string{"Rejected: interaction with an active prescription", "Rejected: dose above the daily maximum", "Signature of the prescriber is missing"}
	noConsent  = []string{"Patient has withdrawn consent", "Export exceeds the approved scope"}
)

var scenarios = [...]scenario{
	{24, "fhir.patient.read", staff, false, "Patient", "pat-", "PHI", `"phi_extended"`, "Patient record viewed by the treating team", 2, denied, "treatment"},
	{14, "fhir.observation.read", staff, false, "Observation", "obs-", "PHI", `"phi_extended"`, "Laboratory results viewed", 2, denied, "treatment"},
	{12, "auth.login.success", staff, false, "", "", "INTERNAL", `"standard"`, "Signed in with password and one-time code", 0, nil, ""},
	{5, "auth.login.attempt", unknown, true, "", "", "INTERNAL", `2555`, "Signed in after a second try", 85, badLogin, ""},
	{7, "auth.logout", staff, false, "", "", "INTERNAL", `"standard"`, "Signed out", 0, nil, ""},
	{6, "auth.session.refresh", staff, false, "Session", "sess-", "INTERNAL", `"minimal"`, "Session extended by 15 minutes", 4, badLogin, ""},
	{7, "fhir.medication-request.create", staff, false, "MedicationRequest", "rx-", "PHI", `"phi_extended"`, "Prescription issued and sent to the pharmacy", 5, rxRejected, "treatment"},
	{5, "fhir.medication-request.update", staff, false, "MedicationRequest", "rx-", "PHI", `"phi_extended"`, "Dose changed after the laboratory's findings", 6, rxRejected, "treatment"},
	{4, "fhir.encounter.create", staff, false, "Encounter", "enc-", "PHI", `"phi_extended"`, "Visit opened at reception", 1, denied, "treatment"},
	{3, "fhir.patient.update", staff, false, "Patient", "pat-", "PHI", `"phi_extended"`, "Address and insurance updated", 3, denied, "operations"},
	{4, "patient.portal.view", patient, false, "Patient", "pat-", "PHI", `"phi_extended"`, "Patient viewed their own record", 1, denied, "patient request"},
	{2, "consent.grant", patient, false, "Consent", "con-", "CONFIDENTIAL", `"confidential"`, "Consent to share records with the cardiologist", 1, denied, "patient request"},
	{1, "consent.withdraw", patient, false, "Consent", "con-", "CONFIDENTIAL", `"confidential"`, "Consent to research withdrawn", 0, nil, "patient request"},
	{2, "data.export", staff, false, "Bundle", "exp-", "CONFIDENTIAL", `2555`, "Records exported for a referral, 42 pages", 8, noConsent, "payment"},
	{1, "data.delete", staff, false, "Document", "doc-", "CONFIDENTIAL", `"confidential"`, "Duplicate scan removed", 10, denied, "operations"},
	{1, "admin.role.assign", staff, false, "User", "user-", "INTERNAL", `"standard"`, "Role nurse-manager assigned", 5, denied, "operations"},
	{1, "admin.emergency-access.grant", staff, false, "Patient", "pat-", "PHI", `"phi_extended"`, "Break-glass access in the emergency room, reviewed afterwards", 2, denied, "emergency"},
	{1, "admin.settings.update", staff, false, "Configuration", "cfg-", "INTERNAL", `"standard"`, "Session timeout set to 15 minutes", 5, denied, "operations"},
	{3, "hl7.message.receive", system, false, "Message", "msg-", "PHI", `"phi_extended"`, "ORU^R01 accepted from the laboratory", 3, []string{"Segment OBX-5 can't be matched to a patient"}, "treatment"},
	{1, "system.backup.verify", system, false, "Backup", "bak-", "PUBLIC", `"minimal"`, "Backup restored and compared", 4, []string{"Checksum of volume 3 differs"}, ""},
}

// weights is the sum of all scenarios' weights.
var weights = func() (sum int) {
	for i := range scenarios {
		sum += scenarios[i].weight
	}
	return sum
}()

func pickScenario(r *rand.Rand) *scenario {
	n := r.IntN(weights)
	for i := range scenarios {
		if n -= scenarios[i].weight; n < 0 {
			return &scenarios[i]
		}
	}
	panic("sample: the weights don't add up")
}

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

var (
	departments = []string{"cardiology", "pediatrics", "emergency", "radiology", "oncology", "internal medicine", "Geburtshilfe", "pharmacy", "billing"}
	roles       = []string{"physician", "nurse", "pharmacist", "receptionist", "lab technician", "nurse-manager", "privacy officer"}
	agents      = []string{
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/141.0",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) Safari/605.1.15",
		"ClinicTablet/7.3.1 (iPadOS 18.1)",
		"ClinicDesktop/11.4 (Windows 11; de-CH)",
		"IntegrationEngine/4.5.2 (HL7v2; MLLP)",
	}
	workflows = []string{"ward round", "referral", "discharge", "check-in", "lab follow-up", "repeat prescription"}
)

func appendPrincipal(b []byte, r *rand.Rand, who actor) []byte {
	switch who {
	case staff:
		b = append(b, "user-"...)
	case patient:
		b = append(b, "patient-"...)
	case system:
		b = append(b, "svc-interface-"...)
		return appendDigits(b, r.Uint64N(6), 2)
	case unknown:
		b = append(b, "login-"...)
	}
	return appendHex(b, r.Uint64(), 8)
}

func appendSession(b []byte, r *rand.Rand) []byte {
	b = append(b, `,"sessionContext":{"sessionId":"sess-`...)
	b = appendHex(b, r.Uint64(), 16)
	b = append(b, `","ipAddress":"10.`...)
	n := r.Uint64()
	b = appendDigits(b, n&63, 1)
	b = append(b, '.')
	b = appendDigits(b, n>>8&255, 1)
	b = append(b, '.')
	b = appendDigits(b, n>>16&255, 1)
	b = append(b, `","userAgent":"`...)
	b = append(b, pick(r, agents)...)
	return append(b, `"}`...)
}

// appendContext writes what the event's producer adds of its own, which
// auditsink stores among the details.
func appendContext(b []byte, r *rand.Rand, c *clinic, s *scenario) []byte {
	n := r.Uint64()
	if n&1 == 0 {
		b = append(b, `,"facility":"`...)
		b = append(b, c.name...)
		b = append(b, '"')
	}
	if s.actor == staff && n&6 != 0 {
		b = append(b, `,"practitioner":{"role":"`...)
		b = append(b, pick(r, roles)...)
		b = append(b, `","department":"`...)
		b = append(b, pick(r, departments)...)
		b = append(b, `"}`...)
	}
	if s.purpose != "" {
		b = append(b, `,"purposeOfUse":"`...)
		b = append(b, s.purpose...)
		b = append(b, '"')
	}
	if r.IntN(3) == 0 {
		b = append(b, `,"details":{"workflow":"`...)
		b = append(b, pick(r, workflows)...)
		b = append(b, `","durationMs":`...)
		b = appendDigits(b, r.Uint64N(2_000), 1)
		b = append(b, `,"fieldsShown":`...)
		b = appendDigits(b, 1+r.Uint64N(40), 1)
		b = append(b, '}')
	}
	return b
}

// flatten makes a text of the members from a place on, which begin with a
// comma. None of them has a character to escape but its quotes.
func flatten(b []byte, from int) []byte {
	members := bytes.Clone(b[from+1:])
	b = append(b[:from], `,"context":"{`...)
	for _, c := range members {
		if c == '"' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return append(b, `}"`...)
}

// appendDigits writes n in decimal, with zeros in front up to width.
func appendDigits(b []byte, n uint64, width int) []byte {
	var d [20]byte
	i := len(d)
	for n > 0 || width > 0 {
		i--
		d[i] = byte('0' + n%10)
		n /= 10
		width--
	}
	return append(b, d[i:]...)
}

const hexDigits = "0123456789abcdef"

// appendHex writes the lowest width hex digits of n.
func appendHex(b []byte, n uint64, width int) []byte {
	for ; width > 0; width-- {
		b = append(b, hexDigits[n>>(4*(width-1))&15])
	}
	return b
}

// appendUUID writes a random (version 4) UUID as of RFC 9562.
func appendUUID(b []byte, r *rand.Rand) []byte {
	hi, lo := r.Uint64(), r.Uint64()
	b = append(appendHex(b, hi>>32, 8), '-')
	b = append(appendHex(b, hi>>16, 4), '-')
	b = append(appendHex(b, hi&0x0fff|0x4000, 4), '-')
	b = append(appendHex(b, lo>>48&0x3fff|0x8000, 4), '-')
	return appendHex(b, lo, 12)
}

func appendHexSum(b, text []byte) []byte {
	sum := sha256.Sum256(text)
	return hex.AppendEncode(b, sum[:])
}
