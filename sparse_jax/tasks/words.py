"""Identifiers, plain words and numbers that fill the templates, by split.

A word's hash decides its split, so one word never occurs in two splits,
whichever list it stands in.
"""

import hashlib

from sparse_jax.tasks.pairs import SPLITS

_NAMES = """
action address alias args array attr axis base batch block body bounds branch
bucket buffer cache callback case cell channel char child choice chunk cls code
color column command config content context copy core count cursor data date
default degree delta depth dest digits dim directory doc domain dtype edge
element end engine entry env epoch error event expr extra factor field file
filename first flag flags fmt fp frame func graph group handle handler header
headers height host i idx index info init instance item items iterable j job k
key keys kind kwargs label lang last layer left length level limit line lines
link loc log lower m mapping mask match matrix message meta method mode model
module msg n name names new node nodes num number obj offset old op option
options order other out output owner p page pair params parent part parts path
pattern pipe pixel plugin point points pool port pos prefix project proxy q
query queue r rate raw reader record ref region request res response rest result
results right rng root row rows rule s sample schema scope score section seed
seq server session shape sign size slot source spec stack start state status
step stop store stream string style sub suffix symbol t table tag tags target
task temp term test text time timeout title token tokens total tree u unit upper
url user v val value values var vector version view w weight weights width
window word words worker writer x y z zone
"""

# Words of messages, keys and paths inside strings.
_NOUNS = """
account action address alias amount answer archive area argument array aspect
attribute author axis backend bank binary block body book border bottom box
branch bridge bucket buffer build button byte cache camera card case cell center
chain channel chapter character check child choice city class client clock cloud
cluster code color column comment company config connection consumer content
context cookie corner country cover cursor customer data database date day
degree depth desk detail device digit dimension directory disk document domain
door draft drive edge editor element email encoding endpoint engine entry error
event example expression factor failure family feature field figure file filter
flag folder font footer form format frame function game gateway graph grid group
guide handler hash head header height history home host hour house icon image
index input instance interface invoice island item job key keyword label lake
language layer leaf letter level library light limit line link list location
lock log loop machine mail map market mask master matrix member memory menu
message method metric minute mirror mode model module moment month mount mouse
name network node note number object offset office option order output owner
package page panel paper parameter parent parser part password path pattern
payload payment peak person phone photo pixel place plan player plugin point
policy port position price printer process product profile program project
property protocol proxy query question queue random range rate reader reason
record region registry release report request resource response result review
river road robot role room root route row rule sample scale schema score screen
script search season second section segment sensor series server service session
setting shape sheet signal site size socket source space square stack stage
standard state station status step stock storage store story stream street
string student style subject suffix summary symbol system table tag target task
team template term test text theme thread ticket time timeout title token tool
topic total town track traffic tree trial tuple unit update user value variable
vector version video view wheel widget window winter word worker world writer
year zone
"""

_ADJECTIVES = """
active bad big binary blank blue bold broken busy certain clean clear closed
common complete correct current daily dark dead deep default different digital
double dry early east empty equal exact existing expected external extra false
final fine first fixed foreign free fresh full future general global good great
green half happy hard heavy hidden high hot initial inner internal invalid joint
known large last late latest left light likely linear little live local lone
long loose low lower main major minor missing mixed modern narrow new nice
normal odd old only open optional orange ordinary original other outer own
partial past pending perfect plain possible previous primary private proper
public pure quick quiet random rare raw ready real recent red regular related
remote required right rough round safe same secret secure separate shared sharp
short signed silent similar simple single slow small smart soft solid spare
special specific stable stale static strange strict strong sudden sure sweet
tall temporary thick thin tiny top total true typical unique unknown unused
upper useful usual valid virtual visible warm weak west white whole wide wild
wrong yellow young
"""

# Parameters that hold a path.
_PATHS = """
archive cachefile conf configfile database dbfile dest destination dst dump
datafile file filename filepath fn fname image infile inpath input_file
inputfile json_file jsonfile location log log_file logfile name outfile outpath
output_file outputfile p path path_name pathname pidfile report_file save_path
script source sourcefile src srcfile stream target text_file textfile url xml
"""

# Names of functions and methods.
_FUNCTIONS = """
acquire add_field add_item append_row apply_rule as_dict ask assign attach bind
build build_index calculate call_api change check check_size choose clean
cleanup clear_cache close_all collect combine compare compile_rule compute
configure connect convert copy_file count_rows create create_node decode delete
describe detect dispatch display draw dump_state emit enable encode estimate
evaluate execute expand export extract fetch fetch_rows fill filter find
find_node finish flush format_date format_line from_dict generate get_data
get_item get_name get_path get_size get_value group handle import_data index
insert inspect invoke is_valid iterate join_path keep launch list_files load
load_config load_data load_file lock log_error login lookup make_path make_table
map_values mark match measure merge move next_item normalize notify open_file
order parse parse_args parse_date parse_line patch plot prepare print_table
process pull push put query random_name read_all read_config read_data read_file
read_line receive record reduce refresh register release reload remove rename
render repeat replace report reset resize resolve restore retry reverse run
run_task sample save save_file scale scan schedule search select send send_mail
serialize serve set_value setup shift show shuffle sign skip solve sort_rows
split_line start_server stop store submit sum_values summarize swap sync tag
tokenize total train transform translate trim try_parse unpack update update_row
upload use_cache validate verify visit wait walk warn watch wrap write_data
write_file write_log
"""

_CLASSES = """
Account Action Adapter Agent Archive Article Backend Base Batch Block Board Book
Bridge Browser Buffer Builder Button Cache Card Cell Channel Chart Client Clock
Cluster Collector Column Command Config Connection Container Context Converter
Counter Cursor Database Dataset Decoder Device Dialog Director Document Domain
Driver Editor Element Emitter Encoder Engine Entry Event Exporter Factory Field
Filter Finder Folder Form Formatter Frame Game Gateway Generator Graph Grid
Group Handler Header History Host Image Importer Index Input Inspector Invoice
Item Iterator Job Keeper Label Layer Layout Library Line Link List Listener
Loader Lock Logger Machine Manager Map Matrix Member Menu Message Metric Model
Module Monitor Mover Network Node Number Object Observer Option Order Output
Package Page Pair Panel Parser Path Payment Person Pipeline Player Plugin Point
Policy Pool Printer Process Product Profile Project Proxy Query Queue Reader
Record Registry Renderer Report Request Resource Response Result Robot Route
Router Row Rule Runner Sample Scanner Scheduler Schema Screen Section Segment
Selector Server Service Session Setting Shape Signal Socket Solver Source Stack
Stage State Status Step Storage Store Stream Style Symbol System Table Task
Template Test Text Theme Thread Ticket Timer Token Tool Tracker Trainer Tree
Tuple Unit User Validator Value Vector Version View Visitor Walker Widget Window
Worker Writer Zone
"""


def _split_of(word: str) -> str:
  """Returns a word's split: three in five train, one in five each other."""
  bucket = hashlib.sha256(word.encode()).digest()[0] % 5
  return ("train", "train", "train", "validation", "test")[bucket]


def _deal(words) -> dict[str, tuple[str, ...]]:
  dealt = {split: [] for split in SPLITS}
  for word in dict.fromkeys(words):
    dealt[_split_of(word)].append(word)
  return {split: tuple(words) for split, words in dealt.items()}


WORDS = {
  "name": _deal(_NAMES.split()),
  "var": _deal(_NAMES.split()),  # Variables that answers name.
  "noun": _deal(_NOUNS.split()),
  "adjective": _deal(_ADJECTIVES.split()),
  "path": _deal(_PATHS.split()),
  "function": _deal(_FUNCTIONS.split()),
  "class": _deal(_CLASSES.split()),
  "number": _deal(str(n) for n in range(100)),
}
