// The header in C++: nothing but that it compiles and links.
#include <sealane.h>

int main()
{
	return sealane_version() == nullptr;
}
